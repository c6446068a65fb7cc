"""What paramdelta costs, measured: against the disk, against mergekit, and from 1 B to 70 B.

compare.py         wall time, CPU and peak memory beside the floor and mergekit   `make bench`
formats.py         FP8 inputs and vocabularies that differ, beside the plain case
flat.py            cost per GB and peak memory from 1 B to 70 B, on sparse files
table.py           the README's tables, printed from results/*.json

llama.py           the shapes: which tensors a Llama has
shards.py          the same as safetensors files: headers, offsets, index
make_checkpoints.py  post, base and new base with trained-like values
make_sparse.py     the true 8B and 70B files, their data holes
floor.py           the least that any tool must do: read everything, write the output
mergekit.py        mergekit's environment, recipe and command
agreement.py       how near an output is to the correctly rounded sum
page_cache.py      warm or cold inputs
meter.py           one child process: wall, CPU, peak memory
machine.py         what it was measured on
"""

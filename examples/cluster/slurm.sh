#!/bin/bash
# A mix as a Slurm array of four parts, and a job that finishes it when all of them are done.
#
#     ./slurm.sh recipe.yaml /shared/mixed [options of mix, such as --shard-size 2GB]
#
# The parts take no memory to speak of; what counts is how fast each node reads and writes.
set -euo pipefail
recipe=$1 out=$2
shift 2
mix=(paramdelta mix "$recipe" --out "$out" "$@")

parts=$(sbatch --parsable --array=0-3 --requeue --cpus-per-task=2 --mem=2G \
    --job-name=mix --wrap "$(printf '%q ' "${mix[@]}" --part auto)")
finish=$(sbatch --parsable --dependency="afterok:$parts" --kill-on-invalid-dep=yes --cpus-per-task=1 --mem=2G \
    --job-name=mix-finish --wrap "$(printf '%q ' "${mix[@]}" --finish)")
echo "parts: job $parts, then job $finish"

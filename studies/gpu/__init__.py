"""ParamΔ at 20–150 M parameters on real text: a study for one GPU and some minutes.

    python -m studies.gpu --data ../shared/data --out docs/study-gpu/results.json

One file a noun, in the order in which the data goes through them:

    corpus      the text: books, questions, source code, and what is held out
    sizes       how large the models are and how long each stage trains
    tokens      the tokenizer, and documents packed into rows of equal length
    model       the Llama architecture, small enough to read
    decode      greedy answers from a model, many at once
    training    one stage of training: rows in, other weights out
    measures    what a model scores on held-out text and questions
    delta       the arithmetic of the paper, its controls, and norms
    experiment  base, post, new bases, direct and ParamΔ, measured into one JSON file
    report      the plots, and the tables of docs/study-gpu.md, from that file
"""

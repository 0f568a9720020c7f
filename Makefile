# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# On Linux with a GPU any torch does; where pip would fetch gigabytes of CUDA and a CPU is enough:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: help demo test cluster architectures lowest lowest-quick check docs bench clean

help:
	@echo "make demo   environment, models, then 24 stories handed over as text, as cache, and as another story's cache"
	@echo "make test   the test suite, in up to four processes"
	@echo "make architectures   tiny models of all architectures of transformers, held to what transformers computes"
	@echo "make cluster the tests of graphs on Ray, in an environment of their own"
	@echo "make lowest a part of it with the lowest versions of the dependencies; make lowest-quick: some of that"
	@echo "make check  linter, types, direction of imports"
	@echo "make docs   the site of docs/ in build/site, with every link and anchor checked"
	@echo "make bench  the figures of the README and of docs/background/benchmarks.md"

.venv/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cachegraph needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/ready
	$(BIN)/pip install --quiet --group dev
	@touch $@

demo: .venv/ready
	$(BIN)/cachegraph run recipes/story-relay.yaml --channel text --channel cache
	$(BIN)/cachegraph compare recipes/story-relay.yaml --data recipes/data/demo-stories.jsonl --variants text,cache,mismatched,alone -m accuracy -m answer_logprob
	$(BIN)/cachegraph run recipes/document-relay.yaml --channel text --channel cache

# One torch thread in each process of the tests. They start processes that import the package: its bytecode is kept.
# glibc gives freed blocks over 32 MB back to the kernel, which then clears as many pages for the next test: these stay.
TESTING := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= MALLOC_MMAP_THRESHOLD_=268435456 MALLOC_TRIM_THRESHOLD_=1073741824

test: .venv/dev
	$(TESTING) $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

architectures: .venv/dev
	$(TESTING) $(BIN)/pytest -m architectures -n logical --maxprocesses 4 --dist worksteal tests/engine/test_architectures.py

# Ray is large and few need it, so it has an environment of its own, which sees the packages of the usual one.
CLUSTER := .venv-cluster/bin
cluster: .venv/dev
	$(PYTHON) -m venv .venv-cluster
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(CLUSTER)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/usual.pth
	$(CLUSTER)/pip install --quiet "ray[client]>=2.60"
	OMP_NUM_THREADS=1 PYTHONPATH=src $(CLUSTER)/python -m pytest -n 0 -m cluster tests/cluster

# The lowest versions that pyproject.toml admits, but for torch, in an environment of its own: a part of the suite, and
# in less than three minutes a part of that.
LOWEST := .venv-lowest/bin
LOWEST_TESTS := $(TESTING) $(LOWEST)/python -m pytest -n logical --maxprocesses 4 -W ignore::DeprecationWarning -m "not architectures and not models and not cluster"
.venv-lowest/ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1" uv
	$(LOWEST)/pip install --quiet $(TORCH)
	$(LOWEST)/uv pip install --quiet --python $(LOWEST)/python --resolution lowest-direct --editable . -r pyproject.toml --all-extras --group dev "torch==$$($(LOWEST)/python -c 'import torch; print(torch.__version__)')"
	@touch $@

lowest: .venv-lowest/ready
	$(LOWEST_TESTS) tests/test_public_names.py tests/common tests/graph/test_load.py tests/graph/test_runtime.py tests/graph/store \
		tests/agents/test_template.py tests/agents/test_endpoint.py tests/agents/test_tools_servers.py tests/engine/test_engine.py \
		tests/engine/test_load.py tests/engine/models tests/channels/test_fusers.py tests/serving

lowest-quick: .venv-lowest/ready
	$(LOWEST_TESTS) tests/test_public_names.py tests/graph/test_runtime.py tests/graph/store/test_store.py \
		tests/agents/test_endpoint.py tests/agents/test_tools_local.py tests/engine/test_engine.py tests/engine/test_load.py tests/engine/test_chat.py \
		tests/channels/test_fuse.py tests/cli/test_run.py tests/evaluation/test_compare.py tests/training/test_ridge.py \
		tests/serving/test_chat_completions.py tests/serving/test_messages.py tests/serving/test_mcp.py tests/integrations

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

docs: .venv/ready
	$(BIN)/pip install --quiet --group docs
	$(BIN)/zensical build --clean --strict

bench: .venv/ready
	$(BIN)/python benchmarks/document_relay.py
	$(BIN)/python benchmarks/runtime_overhead.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/concurrency.py
	$(BIN)/python benchmarks/many_runs.py
	$(BIN)/python benchmarks/fused_overhead.py
	$(BIN)/python benchmarks/first_token.py
	$(BIN)/python benchmarks/mixed_load.py
	$(BIN)/python benchmarks/serve_overhead.py
	$(BIN)/python benchmarks/serve_load.py

clean:
	rm -rf .venv .venv-cluster .venv-lowest .mypy_cache .ruff_cache .pytest_cache .hypothesis

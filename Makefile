# `make demo` and `make test` work from a bare clone with only Python 3.11+ and pip.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUICK := not slow and not network
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-all lint claims bench docs index clean

demo: $(READY)
	$(BIN)/python examples/arithmetic.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(QUICK)" --cov --cov-report=term

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Measures anew every claim whose code has changed since its stored result.
claims: $(READY)
	$(BIN)/thrifty reproduce --store

bench: $(READY)
	$(BIN)/thrifty bench core
	$(BIN)/thrifty bench lm

docs: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

index: $(READY)
	$(BIN)/thrifty report --index site-index --overwrite

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("thrifty needs Python 3.11 or newer: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch -e ".[lm,rl,nas,vision,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs site site-index

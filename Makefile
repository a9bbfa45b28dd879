# `make demo` and `make test` work from a bare clone: Python 3.11, a C++ compiler and a network are enough.
#   TORCH_INDEX=URL   where pip finds torch, for a build of your own choice (README: installing torch)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One thread per test process: two pytest workers share two cores, and results do not depend on the machine.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DELETE_ON_ERROR:
.PHONY: demo test doctest shapes suite chromium lint types contracts docs bench coverage mutate clean

demo: $(VENV)/installed-cli
	$(BIN)/trueup run ghost-batch-norm

# ---- installation: a stamp per purpose; editing pyproject.toml or constraints.txt installs again ----

$(VENV)/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trueup needs Python 3.11 or later: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/installed-%: pyproject.toml constraints.txt $(VENV)/torch
	$(PIP) install --quiet -c constraints.txt -e '.[$*]'
	touch $@

# ---- tests: separate processes where a hook would change what is tested ----

test: doctest shapes suite

# power_norm_triton.py cannot be imported where torch is built without CUDA: it comes without Triton there.
DOCTEST := --doctest-modules --doctest-ignore-import-errors

doctest: $(VENV)/installed-test
	$(TEST_ENV) $(BIN)/pytest -q $(DOCTEST) src/trueup

METHODS := nn optim quantization federated estimators

# Shape checking wraps every annotated function, which hides our own errors and breaks full-graph compilation;
# so it runs alone, over the reference values, the mathematics and the examples.
shapes: $(VENV)/installed-test
	$(TEST_ENV) $(BIN)/pytest -q --shapes tests/golden $(METHODS:%=tests/%) $(DOCTEST) $(METHODS:%=src/trueup/%)

suite: $(VENV)/installed-test chromium
	$(TEST_ENV) $(BIN)/pytest -q -n 2 tests

# Debian's browser for the report's tests; without it those tests say why they are skipped.
chromium:
	@command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	} || echo "Chromium is missing and could not be installed: the browser tests will be skipped"

# ---- habits ----

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

contracts: $(VENV)/installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet  # the notice is about a later major version

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks

# Not part of continuous integration: which lines of the methods and the lab does no test run?
coverage: $(VENV)/installed-test chromium
	$(TEST_ENV) $(BIN)/pytest -q -n 2 tests --cov --cov-report term:skip-covered --cov-fail-under 95

# Not part of continuous integration: does a test notice when an equation changes?
mutate: $(VENV)/installed-mutate
	$(BIN)/python tests/mutation.py

clean:
	rm -rf $(VENV) site mutants build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

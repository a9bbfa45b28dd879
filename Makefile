# `make demo` and `make test` work from a bare clone: Python 3.11, a C++ compiler and a network are enough.
#   TORCH_INDEX=URL   where pip finds torch, for a build of your own choice (README: installing torch)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
pip = $(1)/bin/python -m pip --disable-pip-version-check

# A client is a folder of tests/clients with a requirements.txt; it has a virtual environment of its own.
CLIENTS := $(patsubst tests/clients/%/requirements.txt,%,$(wildcard tests/clients/*/requirements.txt))
CLIENT_VENVS := .venv-clients

# One thread per test process: two pytest workers share two cores, and results do not depend on the machine.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DELETE_ON_ERROR:
.PHONY: demo test doctest shapes suite chromium clients lint types contracts docs bench coverage mutate clean

demo: $(VENV)/installed-cli
	$(BIN)/trueup run ghost-batch-norm

# ---- installation: a stamp per purpose; editing pyproject.toml or constraints.txt installs again ----

$(VENV)/torch $(CLIENTS:%=$(CLIENT_VENVS)/%/torch): %/torch: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trueup needs Python 3.11 or later: make PYTHON=...")'
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$(call pip,$*) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/installed-%: pyproject.toml constraints.txt $(VENV)/torch
	$(call pip,$(VENV)) install --quiet -c constraints.txt -e '.[$*]'
	touch $@

# ---- tests: separate processes where a hook would change what is tested ----

test: doctest shapes suite

# _kernels/power_norm_triton.py cannot be imported where torch is built without CUDA: it comes without Triton there.
DOCTEST := --doctest-modules --doctest-ignore-import-errors

doctest: $(VENV)/installed-test
	$(TEST_ENV) $(BIN)/pytest -q $(DOCTEST) src/trueup

# Every area of methods: a new folder of src/trueup is one.
METHODS := $(filter-out __pycache__ cli data evidence lab models studies,$(patsubst src/trueup/%/,%,$(wildcard src/trueup/*/)))

# Shape checking wraps every annotated function, which hides our own errors and breaks full-graph compilation;
# so it runs alone, over the reference values, the mathematics and the examples.
shapes: $(VENV)/installed-test
	$(TEST_ENV) $(BIN)/pytest -q --shapes tests/golden $(wildcard $(METHODS:%=tests/%)) $(DOCTEST) $(METHODS:%=src/trueup/%)

suite: $(VENV)/installed-test chromium
	$(TEST_ENV) $(BIN)/pytest -q -n 2 tests

# Debian's browser for the report's tests; without it those tests say why they are skipped.
chromium:
	@command -v chromium >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	} || echo "Chromium is missing and could not be installed: the browser tests will be skipped"

# ---- real clients: other people's trainers and models; not part of continuous integration ----

.PHONY: $(CLIENTS:%=clients-%)
clients: $(CLIENTS:%=clients-%)

# --no-deps: the file names every package, so one that its users replace (timm's torchvision) can be left out.
$(CLIENTS:%=$(CLIENT_VENVS)/%/installed): $(CLIENT_VENVS)/%/installed: tests/clients/%/requirements.txt \
		pyproject.toml constraints.txt $(CLIENT_VENVS)/%/torch
	$(call pip,$(@D)) install --quiet -c constraints.txt -e . pytest
	$(call pip,$(@D)) install --quiet --no-deps -r $<
	touch $@

$(CLIENTS:%=clients-%): clients-%: $(CLIENT_VENVS)/%/installed
	$(TEST_ENV) HF_HUB_OFFLINE=1 $(CLIENT_VENVS)/$*/bin/pytest -q tests/clients/$*

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
	rm -rf $(VENV) $(CLIENT_VENVS) site mutants build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

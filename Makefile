# Every target sets up what it needs: a fresh machine has Python, a C++ compiler and a package index.
PYTHON ?= python3
VENV ?= .venv
PROMPT ?= a hamburger
WHEELS ?= wheels
CUDA_ARCH ?= sm_80

# Python keeps the modules that it compiles, also where the environment says that it should not: tests start it often.
export PYTHONDONTWRITEBYTECODE :=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
GPU_SITE := $(CURDIR)/build/gpu-site
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)
CUDA_OBJECTS := $(patsubst csrc/%.cu,build/cuda-objects/%.o,$(filter %.cu,$(CPP)))
NVCC := $(shell command -v nvcc 2>/dev/null)

TESTS_CPP := $(shell find tests/native -name "*.cpp" -o -name "*.h" -o -name "*.cu" 2>/dev/null)

.PHONY: help install demo test native-check lint format cuda-objects quality teachers gpu-check clean
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

$(STAMP): pyproject.toml setup.py requirements/constraints.txt $(CPP)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile -c requirements/constraints.txt -e ".[dev]"
	touch $@

install: $(STAMP)  ## make the virtual environment, install the pinned packages, build the extension

# The shell reads the prompt from the environment, so no character of it is ever make or shell syntax.
demo: export DEMO_PROMPT = $(value PROMPT)
demo: $(STAMP)  ## text to splat: make demo PROMPT="a palm tree"
	$(BIN)/python -m splatdistill.train --prompt "$$DEMO_PROMPT" --overwrite

test: $(STAMP)  ## the whole test suite, but for the long runs of `make quality`
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not quality"

native-check: $(STAMP)  ## the C++ tests of the kernels, with warnings as errors and sanitizers
	$(BIN)/python tests/native/build_and_run.py

quality: $(STAMP)  ## the long tests: whole distillation runs, judged
	$(BIN)/python -m pytest -q -m "slow or quality"

# The teacher of real things. ASSETS holds the models (docs/TEACHING.md), ENCODER a sentence encoder in transformers'
# layout, PHOTOGRAPHS the weights of EfficientNet-Lite0. Every stage goes on where it was interrupted.
ASSETS ?= assets
ENCODER ?= build/encoder
PHOTOGRAPHS ?= build/efficientnet-lite0.pth
UNTIL ?= 15000
REAL := build/teachers/real
TEACH := $(BIN)/python -m splatdistill.teaching
teachers: $(STAMP)  ## train the shipped teacher from its models (ASSETS=folder): many hours on two cores
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -e ".[teaching]"
	$(TEACH).teach render --out $(REAL) --bundle $(ASSETS) --shards 48
	$(TEACH).teach pages --out $(REAL) --bundle $(ASSETS)
	$(TEACH).teach encode --out $(REAL)
	$(TEACH).teach decode --out $(REAL)
	$(TEACH).teach train --out $(REAL) --until $(UNTIL) --fall $$(($(UNTIL) / 5))
	$(TEACH).teach table --out $(REAL) --bundle $(ASSETS) --encoder $(ENCODER)
	$(TEACH).judge --out $(REAL) --bundle $(ASSETS) --photographs $(PHOTOGRAPHS)
	$(TEACH).truth --out $(REAL) --bundle $(ASSETS)
	$(TEACH).teach export --out $(REAL) --bundle $(ASSETS)
	$(TEACH).card --out $(REAL) --bundle $(ASSETS)
	$(TEACH).teach sheet --out $(REAL)

lint: $(STAMP)  ## ruff, pyright and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP) $(TESTS_CPP))

format: $(STAMP)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP) $(TESTS_CPP))

cuda-objects: $(if $(NVCC),$(CUDA_OBJECTS))  ## compile the CUDA sources for one architecture, running nothing
	@$(if $(NVCC),echo "CUDA objects: $(CUDA_OBJECTS)",echo "no nvcc: the CUDA sources were not compiled")

build/cuda-objects/%.o: csrc/%.cu $(filter %.h,$(CPP))
	mkdir -p $(@D)
	$(NVCC) -std=c++17 -O3 -arch=$(CUDA_ARCH) -Xcompiler -fPIC -Icsrc -c $< -o $@

# PYTHON must already hold a CUDA build of torch; WHEELS is a folder with whatever else it lacks. No index is asked.
gpu-check: export PYTHONPATH := $(GPU_SITE):$(CURDIR)
gpu-check: export SPLATDISTILL_CUDA := 1
gpu-check:  ## on a GPU machine: build, then eight minutes of checks (WHEELS=folder)
	$(PYTHON) -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'
	if ls $(WHEELS)/*.whl >/dev/null 2>&1; then $(PYTHON) -m pip install --quiet --no-index --find-links $(WHEELS) \
	  --no-deps --no-compile --upgrade --target $(GPU_SITE) $(WHEELS)/*.whl; fi
	$(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) benchmarks/gpu_check.py

clean:  ## remove what was built; the virtual environment and outputs/ stay
	rm -rf build dist *.egg-info splatdistill/*.so $(STAMP)

# Two commands for a fresh machine: `make demo` and `make test`. Everything they need is installed here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))

# TRL and what it needs beyond the development group.
TRL := trl datasets dill multiprocess pandas pyarrow xxhash

# What builds the documentation, in the same environment: it imports the commands to describe them.
DOCS := $(VENV)/.installed-docs

.PHONY: demo test test-numeric test-slow test-quantised test-trl test-runtimes test-runtimes-big lint docs wheel
.PHONY: bench bench-text-to-lora bench-transformer2 constraints clean
.DELETE_ON_ERROR:

# Plugins are installed like anyone's, from their own pyproject.
$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q -c constraints.txt --group dev $(foreach plugin,$(PLUGINS),-e $(plugin)) -e .
	touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt --group docs
	touch $@

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow"

# What `make test` has compared with this CPU's own kernels, with those that any CPU has.
test-numeric: $(STAMP)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 -m "numeric and not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

# Apart, because they are large, and because transformers and peft import them wherever they are installed.
test-quantised: $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/quantised -c constraints.txt bitsandbytes torchao
	PYTHONPATH=$(VENV)/quantised $(BIN)/python -m pytest tests/runtime/test_quantised.py tests/merging/test_qlora.py

# Adapters as `adaptrix convert` writes them, run by the programs that they are for, each in a venv of its own.
RUNTIMES := .runtimes
MLX := $(RUNTIMES)/mlx
LLAMACPP := $(RUNTIMES)/llamacpp

$(MLX)/.installed:
	$(PYTHON) -m venv $(MLX)
	$(MLX)/bin/python -m pip install -q "mlx[cpu]==0.32.4" mlx-lm==0.32.2
	touch $@

# Built from source, which takes many minutes; its own converter writes the bases.
$(LLAMACPP)/.installed:
	$(PYTHON) -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python -m pip download -q --no-deps --no-binary :all: -d $(LLAMACPP)/source llama-cpp-python==0.3.36
	tar -xzf $(LLAMACPP)/source/*.tar.gz -C $(LLAMACPP)/source
	$(LLAMACPP)/bin/python -m pip install -q $(LLAMACPP)/source/*.tar.gz
	$(BIN)/python -m pip install -q --no-deps --target $(LLAMACPP)/converter sentencepiece
	touch $@

test-runtimes: $(STAMP) $(MLX)/.installed
	$(BIN)/python -m tests.runtimes.cases mlx $(MLX)/cases
	$(MLX)/bin/python tests/runtimes/judge.py mlx $(MLX)/cases

test-runtimes-big: $(STAMP) $(LLAMACPP)/.installed
	$(BIN)/python -m tests.runtimes.cases gguf $(LLAMACPP)/cases
	PYTHONPATH=$(LLAMACPP)/converter $(BIN)/python -m tests.runtimes.llamacpp_bases $(LLAMACPP)/source $(LLAMACPP)/cases
	$(LLAMACPP)/bin/python tests/runtimes/judge.py llamacpp $(LLAMACPP)/cases

# Apart as well: TRL needs a quarter of a gigabyte of libraries for data.
test-trl: $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/trl -c constraints.txt $(TRL)
	HF_HUB_OFFLINE=1 PYTHONPATH=$(VENV)/trl $(BIN)/python -m pytest tests/runtime/test_trl.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/lint-imports --config plugins/imports.toml

# The site, in dist/docs. Every warning is an error, but not with -q: mkdocs does not count the warnings that it hides.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The wheel, in a bare venv without torch, outside the repository.
wheel: $(STAMP)
	PYTHON="$(PYTHON)" BUILD="$(abspath $(BIN))/python" sh .ci/wheel

bench: $(STAMP)
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/bad_input.py
	$(BIN)/python benchmarks/attach.py
	$(BIN)/python benchmarks/swap.py
	$(BIN)/python benchmarks/routing.py
	$(BIN)/python benchmarks/algebra.py
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/skills.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/spectral.py
	$(BIN)/python benchmarks/experts.py
	$(BIN)/python benchmarks/moe.py

# Experts, their dispatch, and LoRAs beside them, on five seeds.
bench-transformer2: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/transformer2/run.py

# What generated adapters are worth, on five seeds, in a quarter of an hour; seeds that have results are not run again.
bench-text-to-lora: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/text_to_lora/run.py
	$(BIN)/python benchmarks/text_to_lora/report.py --plot docs/assets/text-to-lora.png

constraints:
	sh .ci/constraints $(PYTHON)

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

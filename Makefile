PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed
BROWSER := $(VENV)/.browser-installed

# Tests and the demo make their own data: after installation nothing reaches for the network.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false

# Of what building prints, setuptools' standing advice on editable installations is left out; all else is shown.
PIP_INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet

.PHONY: help install demo space test test-system test-gpu fuzz test-slow test-hf install-browser test-browser lint types format clean

help:
	@echo "make demo       train, evaluate and use a small FASeg on generated data, about 2 minutes; leaves an HTML report"
	@echo "make space      the demo page on this machine; make space MODEL=outputs/train for another model"
	@echo "make test       the default tests, about 5 minutes (no network after installation)"
	@echo "make test-system  the tests that start programs of their own or export whole models, about 5 minutes"
	@echo "make test-gpu   the tests that need a CUDA device; without .venv, in the environment of PYTHON"
	@echo "make test-slow  the tests that take minutes"
	@echo "make fuzz       hostile configurations, images, rows, folders and command lines for an hour"
	@echo "make test-hf    transformers' own common tests on the model and both processors"
	@echo "make test-browser  the demo page in a headless Chromium; skipped, with a line, where there is none"
	@echo "make lint types ruff, which packages may import which, stale tables; mypy"
	@echo "make format     apply ruff's fixes and formatting"
	@echo "make clean      remove the environment, caches and outputs"

install: $(STAMP)

# What the commands need, and on top of it, in the same environment, what developers do.
$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d found, 3.11 or newer needed: make PYTHON=python3.12 ..." % v[:2])'
	@test -n "$(wildcard $(BIN)/../lib/*/site-packages/torch)" && echo "Installing into $(VENV), which has PyTorch." || \
	  echo "Installing into $(VENV): about 3.5 minutes and 7 GB of disk, most of it PyTorch with CUDA. Errors are shown."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) --editable .
	@$(BIN)/python -c 'import torchvision' || \
	  { echo "PyTorch and torchvision in $(VENV) do not fit together: make clean, and install both from one place"; exit 1; }
	@touch $@

$(STAMP): $(RUNS)
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
	@echo "Installed. Try it: make demo"

demo: $(RUNS)
	$(OFFLINE) $(BIN)/python scripts/demo.py

space: $(RUNS)
	@$(PIP_INSTALL) --editable '.[demo]'
	$(BIN)/python scripts/space.py --model_name_or_path $(or $(MODEL),outputs/demo/model)

# Files of tests are spread over processes of one thread each: three on two cores, as some wait for what they started.
test: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# Four processes here: these tests wait longer for what they started.
test-system: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'system and not slow' --numprocesses 4 --dist loadfile

# Installs nothing: an environment with torch for CUDA, transformers and pytest will do; what needs more is skipped.
test-gpu:
	$(OFFLINE) $(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m 'gpu and not slow' tests/gpu --timeout 900

# Ever new hostile inputs for so many seconds; stops at the first that is answered wrongly, and names its seed.
SECONDS_OF_FUZZ ?= 3600
fuzz: $(STAMP)
	@end=$$(($$(date +%s) + $(SECONDS_OF_FUZZ))); seed=0; while [ $$(date +%s) -lt $$end ]; do \
	  seed=$$((seed + 1)); echo "seed $$seed"; \
	  FUZZ_EXAMPLES=500 $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz --numprocesses 2 --dist load \
	    --quiet --hypothesis-seed $$seed || exit 1; \
	done

test-slow: $(STAMP)
	$(OFFLINE) $(BIN)/python -m pytest -m slow --timeout 1800

test-hf: $(STAMP)
	$(BIN)/python tests/transformers_common/run.py

install-browser: $(BROWSER)

$(BROWSER): $(STAMP)
	@$(PIP_INSTALL) --editable '.[browser]'
	@touch $@

test-browser: $(BROWSER)
	$(OFFLINE) $(BIN)/python -m pytest tests/browser --timeout 600

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python scripts/tables.py --check

types: $(STAMP)
	$(BIN)/python -m mypy

format: $(STAMP)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist outputs *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

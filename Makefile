# make demo, test, lint, docs, notebooks, bench: each makes .venv from the pinned requirements first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint format docs notebooks bench clean

$(BIN)/tfface: requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: Python 3.11, 3.12 or 3.13 is needed, $$($(PYTHON) --version) was found; set PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned requirements into $(VENV) (about 3 GB, two to three minutes) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(BIN)/tfface
	@$(BIN)/tfface demo

test: $(BIN)/tfface
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(BIN)/tfface
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest tests/test_imports.py

format: $(BIN)/tfface
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(BIN)/tfface
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "build/docs/index.html is ready; its search works on a server: python -m http.server -d build/docs"

notebooks: $(BIN)/tfface
	@$(BIN)/python scripts/run_notebooks.py notebooks/*.ipynb
	@$(BIN)/python -m pytest tests -m pages

bench: $(BIN)/tfface
	@$(BIN)/python benchmarks/detect.py
	@$(BIN)/python benchmarks/prune.py ResNet50 MobileNetV2

clean:
	rm -rf $(VENV) build runs *.egg-info

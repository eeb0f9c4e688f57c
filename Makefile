# `make demo` and `make test` need nothing but Python (3.10 or newer) with pip and venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
DEMO := runs/vp/digits
MAIN := $(BIN)/python main.py --config configs/vp/digits.py --workdir $(DEMO)

.PHONY: demo test test-slow lint format clean

$(VENV)/.run: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.develop: $(VENV)/.run
	$(PIP) -e '.[test,lint]'
# its samplers are tested beside ours; of what it asks for, torchvision must match torch's build, and neither is used
	$(PIP) --no-deps azula
	@touch $@

# Trains on scikit-learn's digits, measures the bound on the held-out ones, and draws a picture.
demo: $(VENV)/.run
	$(MAIN) --mode train
	$(MAIN) --mode eval
	$(MAIN) --mode sample
	@echo "look at $(DEMO)/samples/grid.png; the numbers are in $(DEMO)/eval/report.json"

# two tests at a time, on one thread each, take half of the time of one on two threads
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.develop
	$(PYTEST)

test-slow: $(VENV)/.develop
	$(PYTEST) -m 'slow or not slow'

lint: $(VENV)/.develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest tests/test_layout.py

format: $(VENV)/.develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

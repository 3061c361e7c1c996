# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready

.PHONY: demo test test-all check format clean

demo: $(READY)  ## install if needed, then compare all methods on the embedded suite
	$(BIN)/python experiments/ideal_vs_doremi.py --folder runs/demo --seeds 2  # --seeds 3 for a verdict

test: $(READY)  ## the tests, one real Ray study among them
	$(BIN)/python -m pytest --numprocesses $(JOBS)

test-all: $(READY)  ## the slow tests too: two workers, faults, long studies
	$(BIN)/python -m pytest -m slow --numprocesses $(JOBS)

check: $(READY)  ## lint, types and floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "kronfluence>=1.0,<1.1"
	touch $(READY)

clean:
	rm -rf $(VENV) runs mlflow.db mlruns .mypy_cache .ruff_cache .pytest_cache .hypothesis

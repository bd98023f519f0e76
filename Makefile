# Every target sets up what it needs: a virtual environment in .venv, made with python3, venv and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-shared lint benchmarks reliability kills fuzz mutants sbom wheel floors clean

demo: .venv/installed
	$(BIN)/milseg reproduce digits --out runs/demo --overwrite
	@echo
	@echo "milseg is in $(BIN). Type $(BIN)/milseg, or activate it for this shell, and then milseg alone:"
	@echo "    . $(BIN)/activate"
	@echo "    milseg predict runs/demo/models/beyond/examples --model runs/demo/models/beyond --out runs/demo/masks"
	@echo "    milseg --help"

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not shared" -n auto

# Needs photos and weights that are not in this repository: MILSEG_SHARED names their folder, else ../shared.
test-shared: .venv/installed-dev
	$(BIN)/python -m pytest -m shared

lint: .venv/installed-dev
	$(BIN)/ruff check src tests benchmarks fuzz mutation release
	$(BIN)/ruff format --check src tests benchmarks fuzz mutation release
	$(BIN)/mypy

# In full they take long; QUICK=1 shows that all of them work. docs/benchmarks.md has the figures.
benchmarks: .venv/installed-dev
	$(BIN)/python benchmarks/run_all.py $(if $(QUICK),--quick)

# docs/reliability.md says what these show.
reliability: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[serve,export]"
	$(BIN)/python tests/reliability/run.py

KILLS ?= 50
kills: .venv/installed-dev
	$(BIN)/python tests/reliability/kills.py --kills $(KILLS)

SECONDS ?= 600
fuzz: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[fuzz]"
	$(BIN)/python fuzz/run.py --seconds $(SECONDS)

MUTANTS ?= 300
mutants: .venv/installed-dev
	$(BIN)/python mutation/run.py --count $(MUTANTS)

sbom: .venv/installed
	$(BIN)/python release/sbom.py

wheel: .venv/installed
	$(BIN)/python release/wheel.py

floors: .venv/installed-dev
	$(BIN)/python release/floors.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

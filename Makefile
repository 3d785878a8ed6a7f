# `make demo` makes twelve songs, `make test` runs the tests; both set up .venv first. Nothing else is needed
# but Python 3.10 or newer.

PYTHON ?= python3
VENV ?= .venv
# The tested version; 2.11 works too: make TORCH=torch==2.11.0 test
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
OUT ?= out/demo

.PHONY: demo test lint golden torture torture-short clean

demo: $(VENV)/.installed
	$(BIN)/python -m jobs.generate --manifest examples/demo.parquet --output $(OUT) --config configs/tiny.yaml \
	    --set batch.max_batch_size=4
	@echo
	@echo "Listen:  $(OUT)/audio   Catalog:  $(OUT)/songs   Summary:  $(OUT)/progress.json"

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(VENV)/.installed-dev
	$(BIN)/python -m tests.golden tests/golden_data

# Processes, nodes, the driver and the store are killed at random; the catalog must not show it.
torture: $(VENV)/.installed-dev
	$(BIN)/python -m tests.torture --kills 50

torture-short: $(VENV)/.installed-dev
	$(BIN)/python -m tests.torture --kills 5 --seed 1

clean:
	rm -rf $(VENV) out

$(VENV)/.installed: pyproject.toml
	@echo "Installing torch, Ray and the rest into $(VENV): about 2 GB, some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[lyrics]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[dev]"
	@touch $@

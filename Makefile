# make demo: train, test and predict on embedded digits, about a minute; make test: the whole suite. Nothing else to set up.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CLI = $(BIN)/python cli.py

.PHONY: demo test test-slow faults lint clean

# Installed again only when the pins change.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.installed
	$(CLI) fit --config configs/digits.yaml
	@run=$$(ls -td runs/digits/version_* | head -1); set -e; \
	$(CLI) test --ckpt_path $$run/checkpoints/best.ckpt; \
	$(CLI) predict --ckpt_path $$run/checkpoints/best.ckpt; echo; \
	echo "the run:       $$run (config.yaml, checkpoints, metrics.csv, results.json, predictions.csv)"; \
	echo "the pictures:  $$run/contact_sheet.png and $$run/confusion.png"; \
	echo "the dashboard: $(BIN)/tensorboard --logdir runs, then open http://localhost:6006"; \
	echo "your photos:   $(CLI) fit --config configs/folder.yaml --data.root FOLDER"

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# What needs minutes or a package index: other versions of Lightning and jsonargparse, and more.
test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Hours; one that was stopped goes on where it was. The figures go to docs/reliability.md.
faults: $(VENV)/.installed-dev
	$(BIN)/python tests/faults/campaign.py --record

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build *.egg-info

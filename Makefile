# `make demo` trains, tests and predicts on scikit-learn's digits, in about a minute. `make test` runs the tests. Both create the
# virtual environment if necessary, which takes another minute or two. `make help` lists the others.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CLI = $(BIN)/python cli.py

.PHONY: help install demo test test-slow compat coverage lock package format lint clean

help:
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/make \1\t\2/p' Makefile | expand -t 18

# With LOCKED=1, all packages, also the indirect ones, are those of requirements.lock, checked by their hashes.
ifdef LOCKED
INSTALLED = $(VENV)/.installed-locked
REQUIREMENTS = requirements.lock
else
INSTALLED = $(VENV)/.installed
REQUIREMENTS = requirements.txt
endif

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Reinstalled only when the requirements change.
$(INSTALLED): $(REQUIREMENTS) | $(VENV)/.created
	@ls $(VENV)/lib/*/site-packages/torch/version.py >/dev/null 2>&1 || \
		echo "Installing the packages, up to 6 GB with those of CUDA: pip prints nothing until it is done"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(LOCKED),--require-hashes) -r $<
	@touch $@

$(VENV)/.installed-dev: $(INSTALLED) requirements-dev.txt
	@echo "Installing the packages for development, about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(VENV)/.installed-dev  ## install everything for development

demo: $(INSTALLED)  ## train, test and predict on scikit-learn's digits
	$(CLI) fit --config configs/digits.yaml
	@run=$$(ls -td runs/digits/version_* | head -1); set -e; \
	$(CLI) test --ckpt_path $$run/checkpoints/best.ckpt; \
	$(CLI) predict --ckpt_path $$run/checkpoints/best.ckpt; echo; \
	echo "Run folder:      $$run (config.yaml, checkpoints, metrics.csv, results.json, predictions.csv)"; \
	echo "Images:          $$run/contact_sheet.png and $$run/confusion.png"; \
	echo "TensorBoard:     $(BIN)/tensorboard --logdir runs, then open http://localhost:6006"; \
	echo "Your own photos: $(CLI) fit --config configs/folder.yaml --data.root FOLDER"

test: $(VENV)/.installed-dev  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# Tests that take minutes or need a package index, such as those with other versions of Lightning and jsonargparse.
test-slow: $(VENV)/.installed-dev  ## run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

compat: $(VENV)/.installed-dev  ## run the tests with other versions of Lightning and jsonargparse
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/compat

# Lines and branches that `make test` executes, in subprocesses too. The report is not a gate; the goal is 92 %.
coverage: $(VENV)/.installed-dev  ## run the tests, and report the executed lines
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n auto --dist worksteal; status=$$?; \
	$(BIN)/python -m coverage combine --quiet; $(BIN)/python -m coverage report; exit $$status

# Thousands of fault-injection tests. Takes hours and resumes if interrupted. The results are written to docs/reliability.md.
.PHONY: faults
faults: $(VENV)/.installed-dev  ## run the fault-injection tests, for hours
	$(BIN)/python tests/faults/campaign.py --record

# Resolves requirements.txt for every platform and Python version. Versions that are locked already stay, if they can.
lock: $(VENV)/.installed-dev  ## resolve requirements.txt into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command 'make lock' requirements.txt --output-file requirements.lock

# The source distribution and the wheel, in dist/; installed and tried in new environments.
package: $(VENV)/.installed-dev  ## build the source distribution and the wheel
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m pytest -m slow tests/test_package.py

format: $(VENV)/.installed-dev  ## sort the imports and format the code
	$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

lint: $(VENV)/.installed-dev  ## check the code
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python tests/repository/test_words.py
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

# Needs only what is in requirements-docs.txt. A warning, such as one about a link without a target, is an error.
$(VENV)/.installed-docs: requirements-docs.txt | $(VENV)/.created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# The documentation as a site: open site/index.html.
.PHONY: docs
docs: $(VENV)/.installed-docs  ## build the documentation as a site
	$(BIN)/zensical build --clean --strict

clean:  ## delete the environment and what was built
	rm -rf $(VENV) dist site

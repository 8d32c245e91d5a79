# make demo: virtual environment, install, a stylised video.  make test: install, tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt
SCRIPTS := $(wildcard launch/*.sh launch/*/*.sh tests/launch/*bin/*)

.PHONY: demo train-demo test lint scan audit format clean

$(VENV)/base: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,torch]'
	touch $@

$(VENV)/dev: $(VENV)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,torch,dev]'
	touch $@

demo: $(VENV)/base
	$(BIN)/stylecrafter demo --out outputs/demo

train-demo: $(VENV)/base
	STYLECRAFTER=$(BIN)/stylecrafter launch/train_demo.sh work/demo

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/dev scan
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/shellcheck -x $(SCRIPTS)

# Offline. A finding is removed from the file, or marked there with a comment that says why.
scan: $(VENV)/dev
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline

# Asks the OSV database about every installed package; needs the network, and fails without it.
audit: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	$(BIN)/pip-audit --local --skip-editable --vulnerability-service osv

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) outputs

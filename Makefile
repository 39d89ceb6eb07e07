# Everything runs from a virtual environment that `make install` makes out of pinned, hashed requirements.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What Node.js needs: the checks of the AsyncAPI document, and the examples.
NODE_FOLDERS := protocol/checks examples/node
NODE_INSTALLED := $(NODE_FOLDERS:%=%/node_modules/.installed)

.PHONY: install sync node protocol demo dev test check matrix matrix-short bench bench-compare conformance-engine format lint types contracts lock clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

node: $(NODE_INSTALLED)

%/node_modules/.installed: %/package-lock.json
	@node -e 'process.exit(Number(parseInt(process.versions.node) < 20))' || \
		{ echo 'Node.js 20 or newer is needed, with npm' >&2; exit 1; }
	npm ci --prefix $* --ignore-scripts --loglevel=error
	touch $@

# The AsyncAPI document and the JSON Schemas, anew from the message models.
protocol: install
	$(BIN)/python -m protocol.generator

# The client without an event loop, out of the one for event loops.
sync: install
	$(BIN)/python -m tests.sync.making

demo: install
	$(BIN)/statewright demo

dev: install
	$(BIN)/statewright dev

test: install
	$(BIN)/python -m pytest

# Without Node.js, `make test` skips what needs it, and this fails.
check: install node
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory lint types contracts
	$(BIN)/python -m pytest --with-node
	$(MAKE) --no-print-directory conformance-engine

# The recorded cases again, with a clock that the runner sets: some wait for a schedule.
conformance-engine: install
	$(BIN)/python -m pytest tests/conformance --engine-only

# The suite against other servers than those of the wheels; installs Debian's where they are missing.
matrix: install
	$(BIN)/python -m tests.matrix

matrix-short: install
	$(BIN)/python -m tests.matrix --short

# About a minute; tests/benchmarks/README.md says what each shows, and which others there are.
bench: install
	$(BIN)/python -m tests.benchmarks.bench_engine
	$(BIN)/python -m tests.benchmarks.bench_storage
	$(BIN)/python -m tests.benchmarks.bench_end_to_end

# Installs a Prefect server into build/; needs a PostgreSQL with pg_trgm, such as Debian's.
bench-compare: install
	$(BIN)/python -m tests.benchmarks.bench_compare

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports --no-logo

# Needs uv; writes the newest versions that fit, with their hashes.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--extra worker --extra embedded --extra bench --group dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) $(NODE_FOLDERS:%=%/node_modules) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

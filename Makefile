# Two commands for people: `make demo` and `make test`. Everything else is a part of one of them.
# uv comes from the Python index if it is not there; nothing is installed outside this folder but Debian's packages.

TOOLS := .tools
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
RUN := $(UV) run --frozen --extra dev
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)

.PHONY: demo test lint mutants setup node clean

demo: setup node
	$(RUN) moorage demo $(ARGS)

test: setup node
	UV=$(UV) sh tests/run.sh

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

# Bugs of a machine's making in the core: how many do the tests find? Takes about a quarter of an hour; see docs/mutants.md.
mutants: setup
	$(RUN) python tests/mutants.py $(ARGS)

setup: .venv/.synced

.venv/.synced: pyproject.toml uv.lock
	command -v $(UV) >/dev/null 2>&1 || { python3 -m venv $(TOOLS) && $(TOOLS)/bin/pip install --quiet uv; }
	$(UV) sync --frozen --extra dev --quiet
	touch $@

node: node_modules/.synced

node_modules/.synced: package.json package-lock.json
	npm ci --silent --no-audit --no-fund
	touch $@

clean:
	rm -rf .venv node_modules $(TOOLS) .demo

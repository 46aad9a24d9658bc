PYTHON ?= python3
# For example 3.13.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
PORT ?= 5000
VENV := .venv
BIN := $(VENV)/bin
PEERS_VENV := benchmarks/.venv
AUDIT_VENV := .venv-audit
AUDITED := requirements.txt requirements-dev.txt requirements-audit.txt
FASTIFY := benchmarks/peers/fastify
TYPESCRIPT := tests/ecosystem/typescript
# $(call install,BIN,LOCK): install exactly what the lock pins. The lock is complete, so pip need not resolve (--no-deps). Otherwise
# pip 23.2 picks a newer release of a requirement with an extra, and then fails because that has no hash.
define install
$(1)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(2)
@broken=$$($(1)/python -m pip --disable-pip-version-check check) || { echo "$$broken"; exit 1; }
endef
# $(call programs,…): install missing programs from Debian's packages of the same names. dpkg knows packages without such a program.
programs = for program in $(1); do \
	command -v $$program >/dev/null || dpkg --status $$program >/dev/null 2>&1 || missing="$$missing $$program"; done; \
	test -z "$$missing" || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends $$missing; } || \
	{ echo "make $@ needs$$missing: the packages of those names in Debian"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help run test live programs ecosystem citus screenshot faults fuzz mutants audit bench bench-scale bench-parts bench-sync bench-capacity openapi lock clean

help: ## List all commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/installed ## Serve on http://127.0.0.1:5000 with SQLite in instance/ (PORT=… moves it)
	@$(BIN)/flask db upgrade
	@echo
	@echo "  The service is at http://127.0.0.1:$(PORT) - try, in another terminal:"
	@echo
	@echo "  curl http://127.0.0.1:$(PORT)/api/alice/tasks -H 'Content-Type: application/json' -d '{\"title\": \"Buy milk\"}'"
	@echo
	@$(BIN)/flask run --host 127.0.0.1 --port $(PORT)

test: $(VENV)/installed-dev ## Check style and types, and run the tests on SQLite and PostgreSQL (90 s)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 3 --dist worksteal --cov --cov-report=term

live: $(VENV)/installed-dev ## Run the tests that start processes: gunicorn, commands, installations, examples in the documents, short fault tests
	$(BIN)/pytest tests/live tests/fuzz tests/faults -n 3 --dist worksteal -o faulthandler_timeout=600

programs: ## Install the programs that make ecosystem needs (as root, on Debian)
	@$(call programs,chromium curl dbus nginx npm openssl pgbouncer prometheus redis-server systemd)

ecosystem: programs $(VENV)/installed-dev $(TYPESCRIPT)/node_modules ## Test with a browser, typed clients, containers, systemd, nginx, Redis, Prometheus and PgBouncer
	$(BIN)/pytest tests/ecosystem -m ecosystem -o faulthandler_timeout=300 -n 2 --dist loadfile
	TEST_THROUGH=pgbouncer $(BIN)/pytest -n 3 --dist worksteal
	TEST_THROUGH=pgbouncer $(BIN)/pytest tests/live/test_concurrent.py tests/live/test_database.py tests/live/test_round_trips.py

citus: $(VENV)/installed-dev ## Test on a cluster of Citus: TEST_CITUS_URL and TEST_CITUS_WORKERS name it (tests/citus)
	$(if $(and $(TEST_CITUS_URL),$(TEST_CITUS_WORKERS)),,$(error NOT RUN: TEST_CITUS_URL and TEST_CITUS_WORKERS name no cluster of Citus))
	TEST_ON=citus $(BIN)/pytest -m sql
	$(BIN)/pytest tests/citus -m "citus and not faults" -o faulthandler_timeout=300

screenshot: $(VENV)/installed-dev ## Take docs/swagger-ui.png again: Swagger UI in a browser
	@$(call programs,chromium)
	$(BIN)/python -m tests.ecosystem.screenshot docs/swagger-ui.png

faults: $(VENV)/installed-dev ## Run all fault tests: break PostgreSQL, workers, network and disk under load, and print the figures
	@$(call programs,nginx pgbouncer)
	$(BIN)/pytest tests/faults -m "faults or not faults" -o faulthandler_timeout=300

fuzz: $(VENV)/installed-dev ## Send random requests for some minutes (SEED=1 EXAMPLES=50: repeatable, and shorter)
	@$(BIN)/python -m tests.fuzz

mutants: $(VENV)/installed-dev ## Put small faults into the code and list those that no test finds; takes two hours (COMMIT=main SEED=1 COUNT=50 WORKERS=1)
	@$(BIN)/python -m tests.mutants

# With environment markers the audit would silently skip packages of other platforms. Without them a package may have two pins: the
# second goes into a file of its own.
audit: $(AUDIT_VENV)/installed ## Look up known vulnerabilities of all pinned packages; fails if the lookup fails
	@for file in $(AUDITED); do \
		echo "$$file"; \
		rm -f $(AUDIT_VENV)/audited-*.txt; \
		awk '/^[A-Za-z0-9]/ { split($$1, name, /==|\[/); pin = ++pins[name[1]]; sub(/ ; .*/, " \\") } \
			/^[A-Za-z0-9]|^ +--hash/ { print > ("$(AUDIT_VENV)/audited-" pin ".txt") }' "$$file" || exit 1; \
		for part in $(AUDIT_VENV)/audited-*.txt; do \
			$(AUDIT_VENV)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
				--requirement $$part || exit 1; \
		done; \
	done

bench: $(VENV)/installed-dev $(PEERS_VENV)/installed $(FASTIFY)/node_modules ## Compare the speed with other frameworks, in benchmarks/RESULTS.md (ROUNDS=1 SECONDS=1: quick)
	@$(call programs,wrk)
	@$(BIN)/python -m benchmarks.bench

bench-scale: $(VENV)/installed-dev ## Compare ten million tasks with a hundred thousand, in benchmarks/SCALE.md
	$(BIN)/python -m benchmarks.scale

bench-parts: $(VENV)/installed-dev ## Measure the cost of log, metrics and rate limits per request
	@$(BIN)/python -m benchmarks.parts

bench-sync: $(VENV)/installed-dev $(PEERS_VENV)/installed $(FASTIFY)/node_modules ## Measure polls, the change feed, and what the clock of a user costs (BEFORE=FOLDER: beside another version)
	@$(call programs,wrk)
	@$(BIN)/python -m benchmarks.sync

bench-capacity: $(VENV)/installed-dev ## Measure what a day of 10,000 users needs (USERS=100: quick)
	@$(BIN)/python -m benchmarks.capacity

openapi: $(VENV)/installed-dev ## Write the OpenAPI document from the code, into docs/ and specs/
	@$(BIN)/flask openapi write docs/openapi.json
	@$(BIN)/flask openapi write --format yaml specs/001-backend-api/contracts/openapi.yaml

lock: $(VENV)/installed-dev ## Update requirements*.txt: resolve requirements*.in, pin versions and hashes
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) requirements-dev.in -c requirements.txt -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) benchmarks/requirements.in -c requirements.txt -o benchmarks/requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade $(LOCK) requirements-audit.in -o requirements-audit.txt
	@if command -v npm >/dev/null; then for folder in $(FASTIFY) $(TYPESCRIPT); do \
		( cd $$folder && npm update --save --package-lock-only --omit-lockfile-registry-resolved ) || exit 1; done; fi

LOCK := --universal --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-config --python-version 3.11 \
	--custom-compile-command "make lock"

clean: ## Remove the virtual environments and the files of the tools; keeps instance/
	rm -rf $(VENV) $(PEERS_VENV) $(AUDIT_VENV) $(FASTIFY)/node_modules $(TYPESCRIPT)/node_modules .coverage .hypothesis \
		.mypy_cache .mutants .pytest_cache .ruff_cache

# A virtual environment of this Python version has this folder. Another version is replaced.
%/lib/python$(PYTHON_VERSION):
	$(PYTHON) -m venv --clear $*

$(VENV)/installed: requirements.txt $(VENV)/lib/python$(PYTHON_VERSION)
	$(call install,$(BIN),$<)
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements.txt $(VENV)/lib/python$(PYTHON_VERSION)
	$(call install,$(BIN),$<)
	@touch $(VENV)/installed $@

$(PEERS_VENV)/installed: benchmarks/requirements.txt $(PEERS_VENV)/lib/python$(PYTHON_VERSION)
	$(call install,$(PEERS_VENV)/bin,$<)
	@touch $@

$(AUDIT_VENV)/installed: requirements-audit.txt $(AUDIT_VENV)/lib/python$(PYTHON_VERSION)
	$(call install,$(AUDIT_VENV)/bin,$<)
	@touch $@

# Without node, Fastify is left out, and RESULTS.md says so.
$(FASTIFY)/node_modules: $(FASTIFY)/package-lock.json
	@if command -v npm >/dev/null; then cd $(FASTIFY) && npm ci --no-audit --no-fund --loglevel=error && touch node_modules; fi

# No install scripts of the packages: nothing here needs them, and one of them reports to its makers.
$(TYPESCRIPT)/node_modules: $(TYPESCRIPT)/package-lock.json
	@node --eval 'process.exit(process.features.require_module ? 0 : 1)' || { echo "make $@ needs node 20.19 or later"; exit 1; }
	@cd $(TYPESCRIPT) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules

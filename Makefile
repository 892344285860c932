# Recipes for people and for CI (.ci/run). `make help` lists them. Everything lands in .venv and build/ of this folder.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PICKGATE_BUILD ?= release
ARGS ?=
export PICKGATE_BUILD
# Images for containers often set it. The tests start some hundred processes: all would compile the same sources again.
unexport PYTHONDONTWRITEBYTECODE

# By another name: a recipe line that names MAKE itself runs even under `make -n`.
REBUILD := $(MAKE)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
KERNELS := $(patsubst ext/%.pyx,ext.%,$(wildcard ext/*.pyx))
BUILT := build/.built-$(PICKGATE_BUILD)
PROTOS := proto/pickgate/v1

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12     the interpreter for .venv (default: python3; 3.11 or newer)'
	@echo '  PICKGATE_BUILD=debug  kind of kernels: release, debug, sanitize, coverage'
	@echo '  ARGS="-k seal -x"     passed on to pytest by test, soak, sanitize, coverage and bench; to loadtests by load; to tests.fuzz by fuzz'

# --- set-up ----------------------------------------------------------------------------------------------------

.PHONY: setup build
setup: .venv/.installed build ## Make .venv from requirements.lock and build the kernels
	@:
build: $(BUILT) ## Build the kernels that have changed
	@:

# One line that says what to install, instead of a page of pip's or the compiler's.
INSTALL_HINT := apt-get install -y build-essential python3-dev python3-venv libssl-dev
define REQUIRE_SYSTEM
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo 'make: $(PYTHON) is missing or older than 3.11; install Python 3.11 or newer, or name one: make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
		|| { echo 'make: $(PYTHON) can not make virtual environments; run: $(INSTALL_HINT)' >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null \
		|| { echo 'make: no C compiler; run: $(INSTALL_HINT)' >&2; exit 1; }
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
		printf '#include <Python.h>\nint main(void) { return 0; }\n' >"$$dir/python.c"; \
		printf '#include <openssl/evp.h>\n#if OPENSSL_VERSION_NUMBER < 0x30000000L\n#error old\n#endif\nint main(void) { return EVP_MD_CTX_new() == 0; }\n' >"$$dir/ssl.c"; \
		headers=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
		$${CC:-cc} -I"$$headers" -c "$$dir/python.c" -o "$$dir/python.o" 2>/dev/null \
		|| { echo 'make: the C compiler can not find or use Python.h of $(PYTHON); run: $(INSTALL_HINT)' >&2; exit 1; }; \
		$${CC:-cc} "$$dir/ssl.c" -o "$$dir/ssl" -lcrypto 2>/dev/null \
		|| { echo 'make: OpenSSL 3.0 or newer with its headers is missing; run: $(INSTALL_HINT)' >&2; exit 1; }
endef

.venv/.created:
	$(REQUIRE_SYSTEM)
	@[ -x $(PY) ] || { echo 'make: creating .venv'; $(PYTHON) -m venv .venv; }
	@touch $@

.venv/.locked: requirements.lock .venv/.created
	@echo 'make: installing the locked requirements'
	@$(PIP) install --require-hashes -r requirements.lock
	@touch $@

.venv/.installed: pyproject.toml setup.py .venv/.locked
	@PICKGATE_BUILD=none $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Another kind of build writes the same .so files, so there is never more than one of these stamps.
$(BUILT): $(wildcard ext/*.pyx ext/*.pxd) setup.py | .venv/.installed
	@echo 'make: building the kernels ($(PICKGATE_BUILD))'
	@mkdir -p build; rm -f build/.built-*
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

# --- use and tests ----------------------------------------------------------------------------------------------

.PHONY: postgres demo test soak bench ratios load
# The server's own cluster is not made: each run of the tests starts one of its own, as another user, and ends it.
postgres: ## Install Debian's PostgreSQL for the ledger's tests, unless there is one (as root)
	@if command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then exit 0; fi; \
		if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
			echo 'make: no PostgreSQL; run as root on Debian or Ubuntu: make postgres; or put its initdb on PATH' >&2; exit 1; fi; \
		echo 'make: installing PostgreSQL'; mkdir -p /etc/postgresql-common/createcluster.d; \
		echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/pickgate.conf; \
		export DEBIAN_FRONTEND=noninteractive; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
		{ apt-get install -y --no-install-recommends postgresql >"$$log" 2>&1 \
			|| { apt-get update && apt-get install -y --no-install-recommends postgresql; } >"$$log" 2>&1; } \
		|| { tail -n 5 "$$log" >&2; echo 'make: PostgreSQL could not be installed' >&2; exit 1; }

demo: setup ## Issue, show, scan and redeem codes on a real store and server; prints the table
	@$(PY) examples/demo.py

# One worker more than cores: one of them mostly waits, for a disk, for a bound to pass, for a code to grow stale.
TEST_WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
PYTEST_PARALLEL := $(PY) -m pytest -n $(TEST_WORKERS) --dist worksteal

test: setup ## All tests (the long ones in their short form)
	@$(PYTEST_PARALLEL) $(ARGS)

soak: setup ## All tests in their long form
	@PICKGATE_SOAK=1 $(PYTEST_PARALLEL) $(ARGS)

bench: setup ## Benchmarks: ratios in one run; without ARGS, a million live codes besides, kept and lost, and the ledger's lag (some minutes)
	@status=0; $(PY) -m tests.bench $(ARGS) || status=$$?; \
		$(if $(ARGS),,echo; $(PY) -m tests.bench.million || status=$$((status ? status : $$?)); \
			echo; $(PY) -m tests.bench.rebuild || status=$$((status ? status : $$?)); \
			echo; $(PY) -m loadtests lag || status=$$((status ? status : $$?));) exit $$status

ratios: setup ## Guarded ratios of one run (a minute): fails where one has become 1.5 times worse; figures in build/bench/
	@$(PY) -m tests.bench --guard

load: setup ## Load on this machine, beside nothing else: Locust, h2load, ours and a comparison, peak, latency, books; writes build/load/report.html
	@$(PY) -m loadtests lot $(ARGS)

.PHONY: tls-report
tls-report: setup ## What sslscan says of the server's TLS, to docs/tls-report.txt (apt-get install sslscan)
	@$(PY) -m tests.server.tls_report

# --- checks ------------------------------------------------------------------------------------------------------

.PHONY: check check-style check-types check-kernels check-contract check-stubs stubs sanitize fuzz coverage
check: setup ## Lint, format, types, kernel stubs, contract lint, drift of generated files
	@$(MAKE) --keep-going check-style check-types check-kernels check-contract check-stubs
	@echo 'check: all good'

check-style: setup
	@echo 'check: ruff'; status=0; $(PY) -m ruff check --quiet || status=1; \
		$(PY) -m ruff format --check --quiet || { echo 'check: run make format' >&2; status=1; }; exit $$status

check-types: setup
	@echo 'check: mypy --strict'; $(PY) -m mypy

check-kernels: setup
	@echo 'check: the types of the kernels'; $(PY) -m mypy.stubtest --mypy-config-file pyproject.toml $(KERNELS)

check-contract: setup
	@echo 'check: buf lint'; .venv/bin/buf lint

# $(1): the folder that the generated package tree is written to.
define GENERATE_STUBS
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m grpc_tools.protoc -Iproto \
		--python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS)/*.proto
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m grpc_tools.protoc -Iproto \
		--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)/*_service.proto
endef

stubs: setup ## Generate the Python stubs of the contract again
	@$(call GENERATE_STUBS,proto)

check-stubs: setup
	@echo 'check: drift of the generated stubs'
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(call GENERATE_STUBS,build/stubs)
	@diff -r --brief -x '*.proto' -x '__init__.py' -x '__pycache__' build/stubs/pickgate/v1 $(PROTOS) \
		|| { echo 'check: the committed stubs differ from what the .proto files give; run make stubs' >&2; exit 1; }

# The kernels of these two kinds are of no use afterwards (the first can't even be loaded alone): build release again.
sanitize: setup ## Kernel tests and fuzzing corpus under AddressSanitizer and UndefinedBehaviorSanitizer
	@status=0; $(REBUILD) PICKGATE_BUILD=sanitize build && \
		PICKGATE_BUILD=sanitize LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc \
		$(PY) -m pytest tests/ext tests/fuzz/test_corpus.py::test_kernels -p no:cacheprovider --capture=sys $(ARGS) || status=$$?; \
		$(REBUILD) PICKGATE_BUILD=release build; exit $$status

fuzz: setup ## Fuzz everything that takes a stranger's bytes, led by coverage: 300 s, or ARGS="--seconds 3600 payload"
	@$(PY) -m tests.fuzz $(ARGS)

coverage: setup ## Tests with line coverage, kernels included; the report is htmlcov/index.html
	@status=0; $(REBUILD) PICKGATE_BUILD=coverage build && \
		{ $(PY) -m coverage run -m pytest $(ARGS); $(PY) -m coverage html --quiet; $(PY) -m coverage report; } || status=$$?; \
		rm -f ext/*.c; $(REBUILD) PICKGATE_BUILD=release build; exit $$status

# --- supply chain ---------------------------------------------------------------------------------------------------

# Tools with thirty packages of their own, that nothing else needs: installed apart, when they are asked for.
TOOLS := .venv/tools

.PHONY: audit sbom
$(TOOLS)/.installed: requirements-supply.lock | .venv/.installed
	@echo 'make: installing the tools of the supply chain'
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check -qq install --require-hashes -r requirements-supply.lock
	@touch $@

audit: $(TOOLS)/.installed ## Known vulnerabilities of everything in the lock files (asks PyPI's database)
	@$(PY) -m tests.supply audit $(ARGS)

sbom: setup $(TOOLS)/.installed ## Bill of materials of .venv in CycloneDX: build/sbom.cdx.json
	@$(PY) -m tests.supply sbom $(ARGS)

# --- upkeep -------------------------------------------------------------------------------------------------------

.PHONY: format lock clean
format: setup ## Format the Python sources and mend what ruff can mend
	@$(PY) -m ruff check --fix-only --quiet; $(PY) -m ruff format

lock: setup ## Resolve both lock files anew from pyproject.toml
	@.venv/bin/uv pip compile pyproject.toml --group build --group test --group dev --group load --group fuzz --group supply --quiet \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--default-index https://pypi.org/simple --custom-compile-command 'make lock' --upgrade -o requirements.lock
	@.venv/bin/uv pip compile --group pyproject.toml:supply --quiet \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--default-index https://pypi.org/simple --custom-compile-command 'make lock' --upgrade -o requirements-supply.lock

clean: ## Remove what was built (keeps .venv; remove that by hand)
	@rm -rf build ext/*.so ext/*.c ext/*.html htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .benchmarks
	@rm -f .venv/.installed

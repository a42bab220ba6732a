# Everything a developer or an operator types.  Needs Python >= 3.11 and, once, the network for PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
# Most tests wait for sockets and clocks rather than compute: three on two cores take two thirds of the time of two.
WORKERS ?= $(shell expr \( $$(nproc) \* 3 + 1 \) / 2)
SOURCES := pyproject.toml setup.py $(wildcard kdns/*.pyx kdns/*.pxd kdns/native/*)
SANITIZED := tests/unit/test_packetcache.py tests/unit/test_udp.py tests/unit/test_multisocket.py \
    tests/unit/test_listen_loop.py tests/unit/test_denial.py tests/unit/test_upstream_native.py tests/fuzz/test_wire_twins.py \
    tests/fuzz/test_packetcache_twins.py

.PHONY: run test check tests test-kube test-coredns chaos bench fuzz fuzz-native sanitized wheels clean

run: $(VENV)/run  ## serve the sample cluster on 127.0.0.1:1053
	@printf '%s\n' 'kdns serves the sample cluster in examples/ on 127.0.0.1:1053 (Ctrl-C stops it).  Try:' \
	    '  dig @127.0.0.1 -p 1053 headless-service.default.svc.cluster.local' \
	    '  dig @127.0.0.1 -p 1053 _postgres._tcp.postgres.default.svc.cluster.local SRV' \
	    '  dig @127.0.0.1 -p 1053 -x 10.96.0.10'
	@exec $(BIN)/kdns -conf Corefile.example -dns.port 1053

test: check tests  ## all checks and tests

check: $(VENV)/dev  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

test-kube: $(VENV)/dev  ## against a real control plane; needs KUBEBUILDER_ASSETS
	@test -n "$$KUBEBUILDER_ASSETS" || { echo 'KUBEBUILDER_ASSETS names no directory with etcd and kube-apiserver'; exit 1; }
	$(BIN)/python -m pytest tests/kube

test-coredns: $(VENV)/dev  ## against the real CoreDNS; skipped without coredns on PATH
	KDNS_PARITY_QUESTIONS=100000 $(BIN)/python -m pytest tests/coredns

chaos: $(VENV)/dev  ## faults of the control plane and of processes, a quarter of an hour; TESTS="K2 L1", SEED=, SCALE=, OUT=
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SCALE),--scale $(SCALE)) $(if $(OUT),--out $(OUT)) \
	    $(filter-out tests,$(TESTS))

bench: $(VENV)/dev  ## what a query costs, beside every peer on PATH; BENCH='hot --rounds 5' says what
	$(BIN)/python -m bench $(BENCH)

fuzz: $(VENV)/dev  ## a million mutated packets
	KDNS_FUZZ_PACKETS=1000000 $(BIN)/python -m pytest tests/fuzz

fuzz-native: FOR ?= 60
fuzz-native:  ## the packet cache's C under libFuzzer, ASan and UBSan, for FOR seconds; needs clang
	@mkdir -p build/fuzz/corpus
	clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DKD_FIRST_BUCKETS=2 -Ikdns/native \
	    tests/native/fuzz_table.c $(addprefix kdns/native/,table.c entry.c facts.c question.c plan.c names.c) -lm -o build/fuzz/table
	build/fuzz/table -max_total_time=$(FOR) -max_len=4096 -artifact_prefix=build/fuzz/ build/fuzz/corpus

sanitized: $(VENV)/dev  ## the tests of the compiled twins with ASan and UBSan in them; needs gcc
	KDNS_COMPILED=must KDNS_CFLAGS='-g -O1 -fsanitize=address,undefined' $(BIN)/pip install --quiet \
	    --disable-pip-version-check --no-deps --target build/sanitized --upgrade .
	PYTHONPATH=build/sanitized:. KDNS_COMPILED=must ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" $(BIN)/python -P -m pytest \
	    -n0 --import-mode=append $(SANITIZED)

wheels: $(VENV)/dev  ## compiled wheels for the usual Linuxes in dist/; needs Docker
	$(BIN)/pip install --quiet --disable-pip-version-check 'cibuildwheel>=2.22'
	$(BIN)/cibuildwheel --platform linux --output-dir dist

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info kdns/*.so

$(VENV)/python: 
	$(PYTHON) -c 'import sys; sys.exit("kdns needs Python 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev: $(VENV)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,kubeconfig]'
	@touch $@

# The commands of the README. Each does all the set-up it needs.
.PHONY: attacks audit-cost audit-faults audit-reading bench demo differential etcdctl test flood fuzz lifecycle neighbours lint format audit-dependencies tools

# Everything the gate checks: format, lints, documentation, dependencies, tests with real etcds.
test: lint audit-dependencies
	tests/etcd/install 3.7 >/dev/null
	tests/etcd/install 3.5 >/dev/null
	tests/etcd/install 3.4 >/dev/null
	tests/etcd/install-promtool >/dev/null
	cargo test --locked --workspace

# Refused handshakes for a minute; the gate does it for five seconds.
flood:
	tests/etcd/install 3.7 >/dev/null
	RINGFENCE_FLOOD_SECONDS=60 cargo test --locked --package ringfence --test client_port audit_flood -- --nocapture

# One tenant attacks in every way there is: what its neighbour notices. The gate does two seconds of each.
neighbours:
	tests/etcd/install 3.7 >/dev/null
	RINGFENCE_NEIGHBOURS_SECONDS=8 cargo test --locked --package ringfence --test neighbours -- --nocapture

# What becomes of clients when certificates, revocations and policy change, when ringfence ends, and when another takes
# its place. The gate does a few of each.
lifecycle:
	tests/etcd/install 3.7 >/dev/null
	RINGFENCE_LIFECYCLE_RUNS=100 RINGFENCE_LIFECYCLE_RELOADS=100 RINGFENCE_LIFECYCLE_REQUESTS=5000 \
		RINGFENCE_LIFECYCLE_WATCHES=200 cargo test --release --locked --package ringfence --test lifecycle -- --nocapture
	RINGFENCE_TAKE_OVERS=30 RINGFENCE_TAKE_OVER_CONNECTIONS=400 \
		cargo test --release --locked --package ringfence --test handover -- --nocapture

# Each fuzz target for a while; new inputs stay below target/, crashes go to fuzz/artifacts/.
FUZZ_SECONDS = 1800
fuzz:
	tests/etcd/install-cargo-fuzz >/dev/null
	for target in $$(ls fuzz/corpus); do \
		mkdir -p "target/fuzz/corpus/$$target" && \
		RUSTC_BOOTSTRAP=1 PATH="$$PWD/target/tools/bin:$$PATH" cargo fuzz run --target-dir target/fuzz \
		"$$target" "target/fuzz/corpus/$$target" "fuzz/corpus/$$target" -- \
		-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=1024 || exit 1; \
	done

lint: format tools
	cargo clippy --locked --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --package ringfence --no-deps --quiet

format:
	cargo fmt --all --check

# Licences, banned crates and sources; duplicates are warnings.
audit-dependencies:
	tests/etcd/install-cargo-deny
	target/tools/bin/cargo-deny --locked check bans licenses sources

# The etcd-client crate of the tests needs protoc when it is built.
tools:
	tests/etcd/install-protoc >/dev/null

# The real etcdctl of three releases, directly and through ringfence: one row for each command.
etcdctl: tools
	for line in 3.4 3.5 3.7; do tests/etcd/install $$line >/dev/null || exit 1; done
	cargo test --locked --package ringfence --test etcdctl -- --nocapture

# Every attack case: what it tries, and how it fared. The gate plays them, too.
attacks: tools
	tests/etcd/install 3.7 >/dev/null
	cargo test --locked --package ringfence --test attacks -- --nocapture

# What is done to the audit log, its disk and its sinks under load, fifty kills among it: a row for each; then every
# tampering, and what `audit verify` says of it. The gate does the same with fewer kills.
audit-faults: tools
	tests/etcd/install 3.7 >/dev/null
	RINGFENCE_KILLS=50 cargo test --locked --package ringfence --test audit_faults -- --nocapture --test-threads 1
	cargo test --locked --package ringfence --test evidence tampering -- --nocapture

# ringfence beside HAProxy, nginx, Envoy, etcd's grpc-proxy and etcd's own port: about 45 minutes, then bench/RESULTS.md.
# Some of it: make bench SECTIONS=proxy,etcd; with half of the rounds: make bench BRIEF=1
bench:
	bench/run $(if $(SECTIONS),--sections $(SECTIONS)) $(if $(BRIEF),--brief)

# What the audit log costs: nothing recorded, `buffered`, `blocking`, `blocking` with signed checkpoints, in turns, against
# a stand-in that answers at once; then `buffered` and `blocking` behind a real etcd.
audit-cost:
	RESULTS=bench/audit-cost.json bench/compare --rounds 5 --seconds 5 \
	--contestants ringfence-unrecorded,ringfence,ringfence-blocking,ringfence-sealed
	bench/audit-cost-etcd

# How fast ten million records are verified, searched and counted, and in how much memory.
audit-reading:
	bench/audit-reading

# 200,000 random requests and more, decided by ringfence and by etcds of four lines with equal rights:
# each difference with its reason. The gate does a few thousand. Another seed: make differential SEED=7
differential: tools
	for line in 3.4 3.5 3.6 3.7; do tests/etcd/install $$line >/dev/null || exit 1; done
	RINGFENCE_DIFFERENTIAL_DECISIONS=220000 RINGFENCE_DIFFERENTIAL_SEED=$(or $(SEED),1) \
	cargo test --locked --package ringfence --test differential -- --nocapture

# A short story with a real etcd and etcdctl. `make demo STAY=1` stays for you to try it.
demo:
	etcd="$$(tests/etcd/install 3.7)" && \
	cargo build --release --locked --package ringfence && \
	ETCD="$$etcd/etcd" ETCDCTL="$$etcd/etcdctl" \
	cargo run --release --locked --package ringfence --quiet -- demo $(if $(STAY),--stay)

# Rust, make and a C compiler are all that `make run` needs. `make test` and `make bench` install the rest.

# What `make run` passes on, such as ARGS='-c my.yaml'.
ARGS ?=
# What `make test` passes on, such as TESTS='--test traffic'.
TESTS ?= --workspace --no-fail-fast
# What `make bench` passes on, such as BENCH='-s k64 -p nginx,sluice'; by default everything, written into docs.
BENCH ?= --docs '$(CURDIR)/docs'
# How long `make fuzz` spends on each target.
FUZZ_SECONDS ?= 60

# Debian keeps servers where the PATH of an ordinary user does not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: run test check bench soak fuzz docs

run:
	cargo run --release -p sluice -- $(ARGS)

test:
	integration/install.sh
	cargo test $(TESTS)

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test -p integration --test architecture
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo 'cargo-deny is not installed: deny.toml was not checked (cargo install --locked cargo-deny)'; fi

# The binary is built as `make run` builds it: a build with the tests' crates would turn on features that it lacks.
bench:
	integration/benches/install.sh
	cargo build --release -p sluice
	cargo run --release -p integration --bin compare -- $(BENCH)

# Reloads, kills and broken configurations under load: a few times in `make test`, hundreds of times here.
soak:
	SLUICE_SOAK=1 cargo test --release -p integration --test soak --test handover

# Sanitizers are behind a door that stable compilers keep shut; RUSTC_BOOTSTRAP opens it, so no nightly is needed.
fuzz:
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@cd integration && for target in $$(cargo fuzz list); do \
		mkdir -p fuzz/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target \
			-- -max_total_time=$(FUZZ_SECONDS) -timeout=10 || exit 1; \
	done

docs:
	cargo run -p sluice -- reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

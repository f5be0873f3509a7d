# Everything a person types. `make` lists it.

CARGO ?= cargo
FEATURES := --features dev

.DEFAULT_GOAL := help
.PHONY: help run test test-fast chaos lint fmt check bench openapi tools deploy-check

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the whole service with a NATS server, a fake Google and sample lessons, in a minute
	@echo "building (the first time takes a few minutes) ..."
	@$(CARGO) build --quiet $(FEATURES)
	@NATS_SERVER="$$(.ci/nats-server)" $(CARGO) run --quiet $(FEATURES) -- dev

test: tools ## every test, on a real NATS server and a real PostgreSQL
	@NATS_SERVER="$$(.ci/nats-server)" .ci/test

chaos: tools ## the storm of faults in full, some minutes; SEED=n repeats one, CHAOS_ROUNDS=n makes it longer
	@CHAOS_ROUNDS="$${CHAOS_ROUNDS:-200}" NATS_SERVER="$$(.ci/nats-server)" .ci/test storm --no-capture

test-fast: ## the tests that need no server
	$(CARGO) test $(FEATURES) --lib

lint: ## formatting, clippy and docs, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets $(FEATURES) --quiet -- -D warnings
	$(CARGO) clippy --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet $(FEATURES)

fmt: ## format the sources
	$(CARGO) fmt

check: lint test ## what CI runs

openapi: ## schemas/openapi.json from schemas/openapi.yaml
	@OPENAPI_WRITE=1 $(CARGO) test --quiet $(FEATURES) --test stories openapi::the_json_is_made_of_the_yaml

bench: ## figures of this machine, as ratios within one run
	@NATS_SERVER="$$(.ci/nats-server)" $(CARGO) bench $(FEATURES) --bench figures

deploy-check: ## Dockerfile, compose.yaml, manifests, systemd unit, alerts and dashboard, without a cluster
	@.ci/deploy-check

tools: ## find or fetch what the tests and `make run` need beside Rust
	@.ci/nats-server >/dev/null
	@.ci/postgres >/dev/null
	@.ci/promtool >/dev/null
	@.ci/chromium >/dev/null
	@.ci/schemathesis --version >/dev/null

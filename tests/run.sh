#!/usr/bin/env bash
# Runs every test: unit, integration (the loom model among them) and documentation. Needs cargo and, the first time, crates and the Debian
# packages prometheus, curl, postgresql, redis-server, redis-tools, nodejs, node-redis, python3-redis and chromium; no service, no other network. Works from any directory. Arguments go to the test run: tests/run.sh keys
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

if ! command -v cargo >/dev/null; then
    echo "tests/run.sh needs cargo; install Rust from https://rustup.rs and open a new shell" >&2
    exit 1
fi

skipped=()

# promtool tests the alert rules, and a real Prometheus scrapes the service.
# The Redis store is tested on servers that the tests start themselves.
# RESP is spoken by clients of several languages.
# Pages of other sites, and the service's own, are opened in a real browser.
missing=()
for tool in promtool:prometheus prometheus:prometheus curl:curl redis-server:redis-server redis-benchmark:redis-tools node:nodejs chromium:chromium; do
    if ! command -v "${tool%:*}" >/dev/null; then missing+=("${tool#*:}"); fi
done
# Debian keeps the programs of each version of PostgreSQL out of the path.
if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then missing+=(postgresql); fi
if ! /usr/bin/python3 -c 'import redis' 2>/dev/null; then missing+=(python3-redis); fi
if ! NODE_PATH=/usr/share/nodejs:/usr/lib/nodejs node -e 'require("redis")' 2>/dev/null; then missing+=(node-redis); fi
if ((${#missing[@]})); then
    say "${missing[*]}: missing, installing Debian's packages"
    as_root=()
    if ((EUID)); then as_root=(sudo -n); fi
    if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" apt-get install -qy --no-install-recommends "${missing[@]}"; }; then
        echo "tests/run.sh may not install them here; install the Debian packages ${missing[*]}, then run it again" >&2
        exit 1
    fi
fi

# cargo-nextest runs the test binaries side by side. Without it `cargo test` does the same work, one binary after the
# other; building nextest would take longer than it saves.
if cargo nextest --version >/dev/null 2>&1; then
    say "unit and integration tests (cargo nextest)"
    cargo nextest run --locked --tests --no-tests=pass "$@"
else
    say "unit and integration tests (cargo test; cargo-nextest is not installed)"
    cargo test --locked --tests "$@"
fi

say "documentation tests"
cargo test --locked --doc "$@"

traces="${HOTPOOL_TRACES:-../shared/traces}"
if [[ ! -f "$traces/azure/azure500_30min_exp.csv.gz" ]]; then
    skipped+=("the check of the Azure trace: $traces/azure/azure500_30min_exp.csv.gz is absent (HOTPOOL_TRACES names another place)")
fi

if ((${#skipped[@]})); then
    say "skipped"
    printf '   %s\n' "${skipped[@]}"
fi
say "all tests passed"

#!/usr/bin/env bash
# Counts the instructions of the hot paths: more than 5 % above what benches/instructions.rs says fails, by name. Needs cargo,
# and installs valgrind (Debian's) and gungraun-runner where they are missing. A part of .ci/run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v valgrind >/dev/null; then
    as_root=()
    if ((EUID)); then as_root=(sudo -n); fi
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" apt-get install -qy --no-install-recommends valgrind
fi
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
if [[ "$(gungraun-runner --version 2>/dev/null)" != *" 0.20.0" ]]; then
    cargo install gungraun-runner --version 0.20.0 --locked
fi
# The package as a release has it, on the dependencies that the tests have built: a release's own would take as long again.
own='profile.dev.package.hotpool'
CARGO_INCREMENTAL=0 cargo bench --locked --profile dev --bench instructions --config "$own.codegen-units=16" \
    --config "$own.opt-level=3" --config "$own.debug-assertions=false" --config "$own.overflow-checks=false"

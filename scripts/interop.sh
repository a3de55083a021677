#!/usr/bin/env bash
# Proves with the real programs that files are exchanged with PEFT, transformers, bitsandbytes and llama.cpp.
#
#   scripts/interop.sh [WORK_FOLDER [MODEL...]]      default: a temporary folder, removed at the end
#
# Each MODEL is a model folder that llama.cpp is to run as well.
#
# Too heavy for every run of CI: torch from the Python index brings gigabytes of CUDA libraries. Existing environments
# and files are taken from variables, and what is not given is set up with pip in the work folder:
#
#   INTEROP_PYTHON        a python with torch, transformers, peft, bitsandbytes, safetensors
#   INTEROP_LLAMA_PYTHON  a python with llama-cpp-python
#   INTEROP_LLAMA_VOCABS  folder models/ of llama.cpp's sources (47 tokenizer vectors); fetched as a source package
#   LLAMANTINO_TEST_MODELS  a folder with stories260K/ and llama2-tokenizer/: without it these two parts are left out
#   LLAMANTINO_SMOLLM2    the GGUF that scripts/assets.sh fetches: without it the real model is left out
#   LLAMANTINO_BINARY     default: target/release/llamantino
#
# Ends with one line a proof, and with 1 if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${LLAMANTINO_BINARY:-target/release/llamantino}")
scripts=$PWD/scripts
quickstart=$PWD/data/quickstart/model
texts=$PWD/data/italian
models=()
if [ $# -gt 0 ]; then
  for model in "${@:2}"; do models+=("$(realpath "$model")"); done
  mkdir -p "$1" && work=$(realpath "$1")
else
  work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
fi
cd "$work"

# environment FOLDER PACKAGE...: a python that has the packages.
environment() {
  local folder=$1
  shift
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder" >&2
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  echo "$folder/bin/python"
}
python=${INTEROP_PYTHON:-$(environment "$work/python" torch transformers peft bitsandbytes safetensors accelerate)}
llama=${INTEROP_LLAMA_PYTHON:-$(environment "$work/llama" llama-cpp-python numpy)}
vocabs=${INTEROP_LLAMA_VOCABS:-}
if [ -z "$vocabs" ]; then
  vocabs=$work/llama_cpp_python-0.3.16/vendor/llama.cpp/models
  [ -d "$vocabs" ] || {
    python3 -m pip download --quiet --no-deps --disable-pip-version-check --no-binary llama-cpp-python \
      llama-cpp-python==0.3.16 >&2
    tar -xzf llama_cpp_python-0.3.16.tar.gz
  }
fi
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1

failed=0
report=$work/report.txt
: > "$report"
# prove NAME COMMAND...: the last line that the command writes is its result.
prove() {
  local name=$1 outcome=ok
  shift
  "$@" > "$work/out.txt" 2> "$work/err.txt" || { outcome=FAILED && failed=1 && tail -5 "$work/err.txt" >&2; }
  printf '%-6s %s: %s\n' "$outcome" "$name" "$(tail -1 "$work/out.txt")" | tee -a "$report"
}
# once FILE COMMAND...: runs the command unless its result is there.
once() {
  local result=$1
  shift
  [ -e "$result" ] || "$binary" "$@" 2> "$work/log.txt" || { cat "$work/log.txt" >&2; exit 1; }
}

# PEFT: an adapter of each kind, trained for a few steps.
cat > run.toml <<EOF
model = "$quickstart"
method = "lora"
[data]
paths = ["$texts/train"]
sequence_length = 128
held_out_fraction = 0.0
[training]
steps = 8
[optimizer]
learning_rate = 3e-3
EOF
for kind in plain rslora dora; do
  case $kind in
    plain) options=() ;;
    *) options=(--set "lora.$kind=true") ;;
  esac
  once "runs/$kind/adapter" train run.toml --set "name=$kind" "${options[@]}"
  once "merged-$kind" merge --base "$quickstart" --adapter "runs/$kind/adapter" --out "merged-$kind" --dtype f32
  prove "PEFT loads our adapter, transformers our merged model ($kind)" "$python" "$scripts/interop_peft.py" \
    --base "$quickstart" --adapter "runs/$kind/adapter" --merged "merged-$kind" --binary "$binary" --prompt "Il mare"
done
once nf4 quantize --model "$quickstart" --out nf4
prove "transformers loads our NF4 folder, we theirs; we load PEFT's adapter" \
  "$python" "$scripts/interop_nf4.py" --base "$quickstart" --nf4 nf4 --work "$work" --binary "$binary"

# llama.cpp: logits of transformers on the same model are the reference, greedy text is compared with our own.
# gguf NAME MODEL [ADAPTER]
gguf() {
  local name=$1 model=$2
  for type in f32 f16; do
    once "$name-$type.gguf" export gguf --model "$model" --type "$type" --out "$name-$type.gguf"
  done
  [ -e "$name.npz" ] || "$python" "$scripts/interop_llama.py" reference --model "$model" --out "$name.npz" 2> "$work/log.txt"
  prove "llama.cpp runs our GGUF ($name)" "$llama" "$scripts/interop_llama.py" compare --reference "$name.npz" \
    --f32 "$name-f32.gguf" --f16 "$name-f16.gguf" --model "$model" --binary "$binary"
}
gguf quickstart merged-plain
once adapter.gguf export adapter-gguf --model "$quickstart" --adapter runs/rslora/adapter --out adapter.gguf
once base-f32.gguf export gguf --model "$quickstart" --type f32 --out base-f32.gguf
[ -e lora.npz ] || "$python" "$scripts/interop_llama.py" reference --model merged-rslora --out lora.npz 2> "$work/log.txt"
prove "llama.cpp puts our adapter on its base" "$llama" "$scripts/interop_llama.py" adapter --reference lora.npz \
  --f32 base-f32.gguf --lora adapter.gguf
if [ -n "${LLAMANTINO_TEST_MODELS:-}" ]; then
  gguf stories260k "$LLAMANTINO_TEST_MODELS/stories260K"
  [ -d llama2 ] || "$python" "$scripts/interop_llama.py" random --tokenizer "$LLAMANTINO_TEST_MODELS/llama2-tokenizer" --out llama2
  once llama2.gguf export gguf --model llama2 --type f32 --out llama2.gguf
  prove "llama.cpp's tokenizer vectors of LLaMA 2" "$llama" "$scripts/interop_llama.py" tokens --gguf llama2.gguf \
    --vectors "$vocabs/ggml-vocab-llama-spm.gguf"
fi
if [ -n "${LLAMANTINO_SMOLLM2:-}" ]; then
  once smollm2 import "$LLAMANTINO_SMOLLM2" --out smollm2
  gguf smollm2 smollm2
fi
for model in ${models[@]+"${models[@]}"}; do gguf "$(basename "$model")" "$model"; done
exit $failed

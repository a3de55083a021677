#!/usr/bin/env bash
# Fetches a CUDA compiler out of Python packages (271 MB unpacked) and prints the variables that a build with
# `--features cuda` reads. No GPU, driver or root needed:
#
#   eval "$(scripts/cuda-toolchain.sh)"
#   cargo build --release --features cuda
#
#   scripts/cuda-toolchain.sh --fetched   exit code 0 if it was fetched before
#
# Needs python3 with pip, and g++. Files stay in ${LLAMANTINO_CUDA:-~/.cache/llamantino/cuda}; a second run fetches nothing.
set -euo pipefail

folder=${LLAMANTINO_CUDA:-${XDG_CACHE_HOME:-$HOME/.cache}/llamantino/cuda}
home=$folder/nvidia/cu13
# Of one CUDA release: its PTX is what drivers from 580 on accept.
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85)

fetched() { "$home/bin/nvcc" --version 2>/dev/null | grep -q 'V13.0.88'; }

if [ "${1:-}" = --fetched ]; then
  fetched
  exit
fi
if ! fetched; then
  echo "fetching the CUDA 13.0 compiler into $folder" >&2
  mkdir -p "$(dirname "$folder")"
  work=$(mktemp -d "$(dirname "$folder")/.cuda-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --root-user-action ignore \
    --target "$work" "${packages[@]}" >&2
  "$work/nvidia/cu13/bin/nvcc" --version | grep -q 'V13.0.88' || { echo "the fetched nvcc does not run" >&2; exit 1; }
  rm -rf "$folder"
  mv "$work" "$folder"
  trap - EXIT
fi
echo "export CUDA_HOME='$home'"

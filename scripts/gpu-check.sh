#!/usr/bin/env bash
# Checks and measures a GPU with a program that was built elsewhere (no cargo, no compiler), and the tools people use
# today beside it where python3 has them.
#
#   scripts/gpu-check.sh [--binary PATH] [--out DIR]
#
# Needs: the program (`cargo build --release --features cuda`, or a copy of it), NVIDIA's driver, cuBLAS, and of this
# repository scripts/gpu-check.sh, tests/bench/peers.py, tests/bench/gpu_peers.py and data/quickstart/model (41 MB in all).
# Writes <device>-<date>.json and .md, and -peers.json where torch, transformers, peft and bitsandbytes are there: figures to
# be kept in tests/bench/gpu/. Exits with 1 where a check did not pass, with 2 where there is no GPU to check.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

binary=$root/target/release/llamantino
out=$PWD/gpu-check
while [ $# -gt 0 ]; do
  case "$1" in
    --binary) binary=${2:?--binary needs a path}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    *) echo "usage: scripts/gpu-check.sh [--binary PATH] [--out DIR]" >&2; exit 2 ;;
  esac
done
[ -x "$binary" ] || { echo "$binary: no such program (--binary PATH)" >&2; exit 2; }

# cuBLAS may come from a Python package; the driver's own folder stays searched.
libraries=$(python3 -c 'import nvidia.cu13 as m, os; print(os.path.join(list(m.__path__)[0], "lib"))' 2>/dev/null || true)
[ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

mkdir -p "$out"
status=0
# A fault on a card ends every later call of its process: one process a section, and one section cannot end another.
for section in parity steps curve memory operations quantise decode throughput; do
  echo "== $section" >&2
  rm -f "$out/$section"/gpu.{json,md} # of an earlier run
  "$binary" bench gpu --device cuda --sections "$section" --model "$root/data/quickstart/model" \
    --out "$out/$section" >/dev/null && code=0 || code=$?
  [ "$code" = 0 ] || status=1
  # An end without a report that is no crash: the device was not opened, and will not be for the next section either.
  if [ "$code" != 0 ] && [ "$code" -le 2 ] && [ ! -f "$out/$section/gpu.json" ]; then
    echo "nothing was checked: $binary has no GPU to check here, for the reason above" >&2
    exit 2
  fi
done

name=$(python3 - "$out" <<'PYTHON'
import json, pathlib, re, sys, time
out = pathlib.Path(sys.argv[1])
names = ["parity", "steps", "curve", "memory", "operations", "quantise", "decode", "throughput"]
reports = {name: json.loads((out / name / "gpu.json").read_text()) for name in names if (out / name / "gpu.json").is_file()}
if not reports:
    sys.exit("no section could begin")
whole = dict(next(iter(reports.values())))
missing = [{"section": name, "passed": False, "error": "the program did not end", "rows": []} for name in names if name not in reports]
whole["sections"] = [section for report in reports.values() for section in report["sections"]] + missing
whole["passed"] = all(section["passed"] for section in whole["sections"])
stem = re.sub(r"[^a-z0-9]+", "-", whole["device"].lower()).strip("-") + time.strftime("-%Y-%m-%d")
(out / f"{stem}.json").write_text(json.dumps(whole, indent=2) + "\n")
texts = [(out / name / "gpu.md").read_text() for name in reports]
body = "".join("\n## " + text.split("\n## ", 1)[1] for text in texts)
(out / f"{stem}.md").write_text(texts[0].split("\n## ", 1)[0] + body)
print(stem)
PYTHON
)
if python3 -c 'import torch, transformers, peft, bitsandbytes' 2>/dev/null; then
  echo "== peers" >&2
  python3 "$root/tests/bench/gpu_peers.py" --out "$out/$name-peers.json" || status=1
else
  echo "peers not done: python3 has no torch, transformers, peft and bitsandbytes" >&2
fi
echo "$out/$name.md"
exit "$status"

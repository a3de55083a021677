#!/usr/bin/env python3
"""Opens what llamantino wrote with PEFT and transformers, and compares the three on the same tokens.

    python -B scripts/interop_peft.py --base MODEL --adapter ADAPTER --merged MERGED [--binary target/release/llamantino]

Needs torch, transformers and peft. Checks that base + adapter in PEFT and the merged folder in transformers give the
same logits, that neither reports missing or unexpected weights, and that greedy text equals llamantino's own.
"""
import argparse, json, subprocess, sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
for name in ("--base", "--adapter", "--merged"):
    parser.add_argument(name, required=True)
parser.add_argument("--binary", default="target/release/llamantino")
parser.add_argument("--prompt", default="Once upon a time")
a = parser.parse_args()

load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
base = load(a.base)
adapted = PeftModel.from_pretrained(load(a.base), a.adapter).eval()
merged = load(a.merged)
ids = torch.randint(3, base.config.vocab_size - 1, (2, 64), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = [model(input_ids=ids).logits for model in (base, adapted, merged)]
largest = logits[1].abs().max()
difference = float((logits[1] - logits[2]).abs().max() / largest)
change = float((logits[1] - logits[0]).abs().max() / largest)

tokenizer = AutoTokenizer.from_pretrained(a.merged)
prompt = tokenizer(a.prompt, return_tensors="pt").input_ids
with torch.no_grad():
    text = tokenizer.decode(merged.generate(prompt, max_new_tokens=40, do_sample=False)[0][prompt.shape[1]:])
command = [a.binary, "generate", "--model", a.merged, "--prompt", a.prompt, "--max-tokens", "40"]
ours = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
same = text.strip() == ours.strip()
print(json.dumps({"merged_vs_peft": difference, "adapter_changes_logits_by": change, "same_greedy_text": same,
                  "transformers": text.strip(), "llamantino": ours.strip()}, ensure_ascii=False))
sys.exit(0 if difference < 1e-5 and change > 1e-3 and same else 1)

#!/usr/bin/env python3
"""Exchanges NF4 folders with transformers + bitsandbytes, and takes an adapter and a model that they wrote.

    python -B scripts/interop_nf4.py --base MODEL --nf4 OUR_NF4 --work FOLDER [--binary target/release/llamantino]

Four proofs: transformers loads our NF4 folder and writes the greedy text that we write with it; the 4-bit tensors of
both folders are the same bytes; we load the folder that transformers wrote; we load an adapter of PEFT (random A and B)
and a model that transformers saved, with the same greedy text.
"""
import argparse, json, pathlib, shutil, subprocess, sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

parser = argparse.ArgumentParser()
for name in ("--base", "--nf4", "--work"):
    parser.add_argument(name, required=True)
parser.add_argument("--binary", default="target/release/llamantino")
parser.add_argument("--prompt", default="Il mare")
a = parser.parse_args()
work = pathlib.Path(a.work)
tokenizer = AutoTokenizer.from_pretrained(a.base)


def theirs(model):
    prompt = tokenizer(a.prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        ids = model.generate(prompt, max_new_tokens=30, do_sample=False)[0][prompt.shape[1]:]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def ours(model, *more):
    command = [a.binary, "generate", "--model", str(model), "--prompt", a.prompt, "--max-tokens", "30", *more]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()


def fresh(name):
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def finish(model, name):
    folder = fresh(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensors(folder):
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        found.update(load_file(file))
    return found


result = {}
# The quantised linears compute in f32 in both programs.
nf4 = AutoModelForCausalLM.from_pretrained(a.nf4, dtype=torch.float32).eval()
result["our_nf4_in_transformers"] = theirs(nf4) == ours(a.nf4)

config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                            bnb_4bit_compute_dtype=torch.float32)
quantised = AutoModelForCausalLM.from_pretrained(a.base, quantization_config=config, dtype="auto", device_map="cpu").eval()
folder = finish(quantised, "nf4-transformers")
our_parts, their_parts = tensors(a.nf4), tensors(folder)
codes = [name for name in our_parts if f"{name}.quant_state.bitsandbytes__nf4" in our_parts]
parts = [name for code in codes for name in (code, f"{code}.absmax", f"{code}.nested_absmax")]
same = [name for name in parts if name in their_parts and torch.equal(our_parts[name].flatten(), their_parts[name].flatten())]
result["same_tensors"] = f"{len(same)} of {len(parts)}"
result["their_nf4_in_ours"] = ours(folder) == ours(a.nf4)

torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(a.base, dtype=torch.float32).eval()
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False)).eval()
adapter = fresh("adapter-peft")
adapted.save_pretrained(adapter)
result["their_adapter_in_ours"] = theirs(adapted) == ours(a.base, "--adapter", str(adapter))
result["their_model_in_ours"] = theirs(merged := adapted.merge_and_unload()) == ours(finish(merged, "merged-peft"))
print(json.dumps(result, ensure_ascii=False))
good = [value for value in result.values() if value is True]
sys.exit(0 if len(good) == 4 and len(same) == len(parts) > 0 else 1)

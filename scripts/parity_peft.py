#!/usr/bin/env python3
"""Trains the same adapter on the same batches with PEFT + bitsandbytes and with llamantino, and compares the losses.

    python -B scripts/parity_peft.py --model MODEL_FOLDER [--steps 200] [--seq 128] [--batch 4] [--rank 8] [--save DIR]

Needs torch, transformers, peft, bitsandbytes (any recent version) and target/release/llamantino. The base is loaded in
f32 and quantised to NF4 with double quantisation by both; no dropout; AdamW 2e-4, clipping at norm 1. The batches are
those of `llamantino bench` (a 64-bit LCG). --save keeps the adapter and the first 20 losses as a golden for the tests.
Exits with 1 if any loss differs by more than 1e-4 relative.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MASK = (1 << 64) - 1


def token_rows(step, rows, length, vocab):
    state, out = (88172645463325252 + step) & MASK, []
    for _ in range(rows * length):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        out.append(3 + (state >> 33) % min(vocab - 3, 997))
    return [out[i * length:(i + 1) * length] for i in range(rows)]


def peft_losses(a, adapter):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    torch.manual_seed(0)
    torch.set_num_threads(2)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.float32)
    load = lambda: AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, quantization_config=quantization,
                                                        device_map={"": "cpu"}, attn_implementation="eager")
    fresh = get_peft_model(load(), LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, target_modules=LINEARS,
                                              bias="none", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in fresh.named_parameters():
            if "lora_B" in name:  # not zero, so that every gradient counts from the first step
                value.copy_(0.02 * torch.randn(value.shape))
    fresh.save_pretrained(adapter)
    model = PeftModel.from_pretrained(load(), adapter, is_trainable=True)
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4, weight_decay=0.0)
    losses = []
    for step in range(a.steps):
        ids = torch.tensor(token_rows(step, a.batch, a.seq, model.config.vocab_size))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def our_losses(a, adapter):
    command = [a.binary, "bench", "train", "--model", a.model, "--adapter", adapter, "--seq", str(a.seq),
               "--batch", str(a.batch), "--warmup", "0", "--steps", str(a.steps)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["losses"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", default="target/release/llamantino")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--save")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        adapter = os.path.join(folder, "adapter")
        theirs = peft_losses(a, adapter)
        ours = our_losses(a, adapter)
        worst = max(range(a.steps), key=lambda i: abs(ours[i] - theirs[i]) / theirs[i])
        error = abs(ours[worst] - theirs[worst]) / theirs[worst]
        print(json.dumps({"steps": a.steps, "worst_step": worst, "worst_relative_difference": error,
                          "first": [theirs[0], ours[0]], "last": [theirs[-1], ours[-1]]}))
        if a.save:
            os.makedirs(a.save, exist_ok=True)
            shutil.copy(os.path.join(adapter, "adapter_model.safetensors"), a.save)
            with open(os.path.join(adapter, "adapter_config.json")) as source:
                config = json.load(source)
            config["base_model_name_or_path"] = os.path.basename(os.path.normpath(a.model))
            with open(os.path.join(a.save, "adapter_config.json"), "w") as file:
                json.dump(config, file, indent=1)
                file.write("\n")
            with open(os.path.join(a.save, "losses.json"), "w") as file:
                json.dump({"seq": a.seq, "batch": a.batch, "losses": theirs[:20]}, file, indent=1)
                file.write("\n")
        sys.exit(0 if error <= 1e-4 else 1)


if __name__ == "__main__":
    main()

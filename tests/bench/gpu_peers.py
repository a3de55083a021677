"""The tools people use today on the shapes of `llamantino bench gpu`: QLoRA steps and single tokens, on one GPU.

    python3 tests/bench/gpu_peers.py --out peers.json [--shapes 7b 13b] [--steps 5]

Needs torch, transformers, peft and bitsandbytes; unsloth is measured as well where it is there. Random weights, NF4 with
double quantisation, rank 16 on all linears, AdamW, clipping at 1, the very token batches of src/bench/shapes.rs. Weights
are made one layer at a time on the card, so the machine needs no memory for a whole model. Each figure is the median of
the steps after one that warms up; where something does not fit or fails, its row says so.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import time

from peers import LINEARS, token_ids

SHAPES = {
    "tiny": (512, 128, 384, 2, 4, 2),
    "7b": (32000, 4096, 11008, 32, 32, 32),
    "13b": (32000, 5120, 13824, 40, 40, 40),
}
SEQUENCES = {"tiny": [16], "7b": [512, 2048, 4096], "13b": [512, 2048, 4096]}


def quantized(torch, shape):
    """A transformers model of a shape whose linears are bitsandbytes' NF4."""
    import bitsandbytes as bnb
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=False, max_position_embeddings=8192, rms_norm_eps=1e-5)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                linear = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True,
                    quant_type="nf4", device="meta")
                values = 0.02 * torch.randn(child.out_features, child.in_features, dtype=torch.bfloat16, device="cuda")
                linear.weight = bnb.nn.Params4bit(
                    values.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True).to("cuda")
                setattr(module, name, linear)
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            owner, _, leaf = name.rpartition(".")
            fill = torch.ones if parameter.dim() == 1 else lambda *s, **k: 0.02 * torch.randn(*s, **k)
            value = torch.nn.Parameter(fill(*parameter.shape, dtype=torch.bfloat16, device="cuda"), requires_grad=False)
            setattr(model.get_submodule(owner), leaf, value)
    # Its rotation angles are computed, not loaded.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config, device="cuda")
    model.is_loaded_in_4bit = True
    return model


def train_rows(torch, model, shape, tool, steps):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    for sequence in SEQUENCES[shape]:
        for recompute in (False, True):
            row = {"tool": tool, "what": "train", "shape": shape, "sequence": sequence, "kept": "inputs" if recompute else "all"}
            try:
                switch = model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable
                switch()
                torch.cuda.reset_peak_memory_stats()
                seconds = []
                for step in range(steps + 1):
                    ids = torch.tensor([token_ids(step, sequence, SHAPES[shape][0])], device="cuda")
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    with torch.autocast("cuda", torch.bfloat16):
                        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    torch.cuda.synchronize()
                    seconds.append(time.perf_counter() - start)
                middle = statistics.median(seconds[1:])
                row |= {"step_s": middle, "tokens_per_s": sequence / middle, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:300]
                optimizer.zero_grad(set_to_none=True)
                gc.collect()
                torch.cuda.empty_cache()
            yield row


def decode_row(torch, model, shape, tool, prompt=512, tokens=64):
    row = {"tool": tool, "what": "decode", "shape": shape, "prompt": prompt, "tokens": tokens}
    try:
        model.eval()
        ids = torch.tensor([token_ids(0, prompt, SHAPES[shape][0])], device="cuda")
        options = dict(do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
        seconds = []
        with torch.inference_mode():
            for count in (1, tokens + 1, 1, tokens + 1):
                torch.cuda.synchronize()
                start = time.perf_counter()
                model.generate(input_ids=ids, min_new_tokens=count, max_new_tokens=count, **options)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        row["tokens_per_s"] = tokens / (seconds[3] - seconds[2])
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    return row


def peft_model(torch, shape):
    from peft import LoraConfig, get_peft_model

    model = quantized(torch, shape)
    model.enable_input_require_grads()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS, bias="none", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--shapes", nargs="*", default=["7b", "13b"], choices=SHAPES)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU")
    import bitsandbytes
    import peft
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft, bitsandbytes)}
    rows = []
    for shape in args.shapes:
        model = peft_model(torch, shape)
        rows += train_rows(torch, model, shape, "peft + bitsandbytes", args.steps)
        rows.append(decode_row(torch, model, shape, "peft + bitsandbytes"))
        del model
        gc.collect()
        torch.cuda.empty_cache()
    if importlib.util.find_spec("unsloth"):
        # It patches transformers for a checkpoint of its own loading; random weights on the card are not among them.
        rows.append({"tool": "unsloth", "what": "train", "error": "not done: needs a checkpoint on disk"})
    with open(args.out, "w") as file:
        json.dump({"device": torch.cuda.get_device_name(), "versions": versions, "rows": rows}, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()

"""The tools people use today on the shapes of `llamantino bench gpu`: QLoRA steps and single tokens, on one GPU.

    python3 tests/bench/gpu_peers.py --out peers.json [--shapes 7b 13b] [--steps 5] [--tools peft unsloth]
    python3 tests/bench/gpu_peers.py --dry    without a GPU: what can be checked of it

Needs torch, transformers, peft and bitsandbytes; unsloth is measured as well where it can be imported. Random weights, NF4
with double quantisation, rank 16 on all linears, AdamW, clipping at 1, the very token batches of src/bench/shapes.rs. For
peft weights are made one layer at a time on the card, so the machine needs no memory for a whole model; unsloth loads a
checkpoint, which is written one layer at a time to $TMPDIR (13.5 GB for 7b, 26 GB for 13b) and removed again. Every tool
and shape has a process of its own: unsloth patches transformers when it is imported. Each figure is the median of the
steps after one that warms up; where something does not fit or fails, its row says so.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from peers import LINEARS, token_ids

SHAPES = {
    "tiny": (512, 128, 384, 2, 4, 2),
    "7b": (32000, 4096, 11008, 32, 32, 32),
    "13b": (32000, 5120, 13824, 40, 40, 40),
}
QUICKSTART = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../data/quickstart/model")
TOOLS = {"peft": "peft + bitsandbytes", "unsloth": "unsloth"}
# Modules in this order: unsloth wants to be imported before what it patches.
NEEDS = {"peft": ["torch", "transformers", "peft", "bitsandbytes"], "unsloth": ["unsloth", "torch", "transformers", "peft", "bitsandbytes"]}
SEQUENCES = {"tiny": [16], "7b": [512, 2048, 4096], "13b": [512, 2048, 4096]}


def llama_config(shape):
    from transformers import LlamaConfig

    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=False, max_position_embeddings=8192, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, architectures=["LlamaForCausalLM"], dtype="bfloat16")


def quantized(torch, shape):
    """A transformers model of a shape whose linears are bitsandbytes' NF4."""
    import bitsandbytes as bnb
    from transformers import LlamaForCausalLM

    config = llama_config(shape)
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


def write_checkpoint(torch, shape, folder, device):
    """Random weights of a shape as a Hugging Face folder, a file for each layer, with the tokenizer of the quickstart."""
    from safetensors.torch import save_file

    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    attention, kv = hidden, hidden // heads * kv_heads
    shapes = {
        "self_attn.q_proj": (attention, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, attention), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner)}
    norm = lambda: torch.ones(hidden, dtype=torch.bfloat16)
    table = lambda *size: (0.02 * torch.randn(*size, dtype=torch.bfloat16, device=device)).cpu()
    places, total = {}, 0

    def write(name, tensors):
        nonlocal total
        save_file(tensors, os.path.join(folder, name), metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(2 * tensor.numel() for tensor in tensors.values())

    for layer in range(layers):
        stem = f"model.layers.{layer}."
        tensors = {f"{stem}{name}.weight": table(*size) for name, size in shapes.items()}
        tensors |= {f"{stem}{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")}
        write(f"layer-{layer:03}.safetensors", tensors)
    write("tables.safetensors", {
        "model.embed_tokens.weight": table(vocabulary, hidden), "lm_head.weight": table(vocabulary, hidden), "model.norm.weight": norm()})
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": places}, file)
    llama_config(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(QUICKSTART, name), folder)


def train_rows(torch, model, shape, tool, steps, recompute_with):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    for sequence in SEQUENCES[shape]:
        for recompute in (False, True):
            row = {"tool": tool, "what": "train", "shape": shape, "sequence": sequence, "kept": "inputs" if recompute else "all"}
            try:
                recompute_with(recompute)
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
                # The error holds the frames of the step, and they its activations, until here.
                optimizer.zero_grad(set_to_none=True)
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


def measure_peft(torch, shape, steps):
    from peft import LoraConfig, get_peft_model

    model = quantized(torch, shape)
    model.enable_input_require_grads()
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS, bias="none", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()

    def recompute_with(recompute):
        (model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable)()

    yield from train_rows(torch, model, shape, TOOLS["peft"], steps, recompute_with)
    yield decode_row(torch, model.eval(), shape, TOOLS["peft"])


def measure_unsloth(torch, shape, steps):
    from unsloth import FastLanguageModel

    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    needed = 2 * (2 * vocabulary * hidden + layers * (2 * hidden * (hidden + hidden // heads * kv_heads) + 3 * hidden * inner))
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.05 * needed:
        raise RuntimeError(f"the checkpoint takes {needed / 1e9:.1f} GB, {tempfile.gettempdir()} has {free / 1e9:.1f} GB free: set TMPDIR")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(torch, shape, folder, "cuda")
        model, _ = FastLanguageModel.from_pretrained(
            model_name=folder, max_seq_length=max(SEQUENCES[shape]), dtype=torch.bfloat16, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, lora_dropout=0, bias="none", target_modules=LINEARS, use_gradient_checkpointing="unsloth",
        random_state=0)
    recompute_with = lambda recompute: FastLanguageModel.for_training(model, use_gradient_checkpointing=recompute)
    yield from train_rows(torch, model, shape, TOOLS["unsloth"], steps, recompute_with)
    FastLanguageModel.for_inference(model)
    yield decode_row(torch, model, shape, TOOLS["unsloth"])


def worker(args):
    """One tool on one shape; its rows and versions as one line of JSON behind what the tool itself prints."""
    [tool], [shape] = args.tools, args.shapes
    result = {"versions": {}, "rows": []}
    try:
        modules = {name: __import__(name) for name in NEEDS[tool]}
        torch = modules["torch"]
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU")
        result["device"] = torch.cuda.get_device_name()
        result["versions"] = {name: getattr(module, "__version__", "unknown") for name, module in modules.items()}
        measure = {"peft": measure_peft, "unsloth": measure_unsloth}[tool]
        for row in measure(torch, shape, args.steps):
            result["rows"].append(row)
    except Exception as error:
        text = f"not done: {type(error).__name__}: {error}"[:300]
        result["rows"].append({"tool": TOOLS[tool], "what": "all", "shape": shape, "error": text})
    print("\n" + json.dumps(result), flush=True)


def run_worker(tool, shape, steps):
    command = [sys.executable, os.path.abspath(__file__), "--worker", "--tools", tool, "--shapes", shape, "--steps", str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        error = f"not done: its process ended with {done.returncode}"
        return {"versions": {}, "rows": [{"tool": TOOLS[tool], "what": "all", "shape": shape, "error": error}]}


def dry():
    """Without a GPU: a checkpoint of the toy is what transformers expects, and a worker says why it cannot measure."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(torch, "tiny", folder, "cpu")
        model, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        wrong = {what: sorted(about.get(what, ())) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if about.get(what)}
        if wrong:
            raise SystemExit(f"the checkpoint is not a LLaMA's: {wrong}")
        ids = torch.tensor([token_ids(0, 16, SHAPES["tiny"][0])])
        loss = model(input_ids=ids, labels=ids).loss.item()
        if not 6.0 < loss < 6.5:  # ln 512 = 6.24 is what a model of small random weights has
            raise SystemExit(f"the loss of the toy is {loss}")
    print(f"checkpoint of the toy: loss {loss:.3f}")
    for tool in TOOLS:
        for row in run_worker(tool, "tiny", 1)["rows"]:
            print(f"{tool}: {row.get('error') or row}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--shapes", nargs="*", default=["7b", "13b"], choices=SHAPES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--dry", action="store_true", help="check without a GPU what can be checked, measure nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    if args.dry:
        return dry()
    if not args.out:
        parser.error("--out names the file to write")
    whole = {"device": None, "versions": {}, "rows": []}
    for shape in args.shapes:
        for tool in args.tools:
            part = run_worker(tool, shape, args.steps)
            whole["device"] = whole["device"] or part.get("device")
            whole["versions"] |= part["versions"]
            whole["rows"] += part["rows"]
    with open(args.out, "w") as file:
        json.dump(whole, file, indent=2)
        file.write("\n")
    if whole["device"] is None:
        raise SystemExit(whole["rows"][0]["error"] if whole["rows"] else "nothing to measure")


if __name__ == "__main__":
    main()

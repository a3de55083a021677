"""Ours beside the tools people use today: same checkpoint, same adapter file, same token batches, same threads.

    python3 tests/bench/peers.py --ours target/release/llamantino --python VENV/bin/python \
        [--llama-python VENV/bin/python --gguf MODEL.gguf] [--rounds 3] [train-f32 train-bf16 decode prompt quantize]

VENV holds torch, transformers, peft, bitsandbytes (and llama-cpp-python for the other). Each part alternates the two
programs for some rounds, since the speed of a machine drifts, and prints one line of a table: medians, the median of the
ratios of the rounds, and peak memory. Training first compares the losses of 20 steps (f32: 1e-4, bf16: 1e-2 relative): a
ratio counts only when both do the same work. Commands are printed in full. The driver needs the standard library only;
the same file, run with `--worker` by VENV's python, is the peer's side. Other work on the machine spoils the figures.
"""

import argparse
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "135m": (49152, 576, 1536, 30, 9, 3, True, 100000.0),
    "1.1b": (32000, 2048, 5632, 22, 32, 4, False, 10000.0),
}


def token_ids(step, length, vocabulary):
    """One row of the batches that `llamantino bench` uses (src/bench/shapes.rs)."""
    state = 88172645463325252 + step
    row = []
    for _ in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        row.append(3 + (state >> 33) % min(vocabulary - 3, 997))
    return row


def report(**values):
    values["peak_rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(values), flush=True)


# The peer's side.


def torch_with(threads):
    import torch

    torch.set_num_threads(threads)
    return torch


def four_bit(torch, dtype):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def worker_model(a):
    """Random weights of a shape, and a fresh adapter for them."""
    torch = torch_with(a.threads)
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    vocabulary, hidden, inner, layers, heads, kv_heads, tied, theta = SHAPES[a.shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, tie_word_embeddings=tied, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, bos_token_id=1, eos_token_id=2)
    torch.set_default_dtype(torch.bfloat16 if a.dtype == "bf16" else torch.float32)
    model = LlamaForCausalLM(config)
    model.save_pretrained(a.model)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS, bias="none", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(a.adapter)


def worker_train(a):
    torch = torch_with(a.threads)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if a.dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, quantization_config=four_bit(torch, dtype), device_map={"": "cpu"})
    model.config.use_cache = False
    model = PeftModel.from_pretrained(model, a.adapter, is_trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    losses, seconds = [], []
    for step in range(a.warmup + a.steps):
        ids = torch.tensor([token_ids(step, a.seq, model.config.vocab_size)])
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= a.warmup:
            seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    report(tokens_per_s=a.seq / statistics.median(seconds), losses=losses)


def worker_generate(a):
    torch = torch_with(a.threads)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).eval()
    ids = torch.tensor([token_ids(0, 512, model.config.vocab_size)])
    prompts, decodes = [], []
    options = dict(do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        model.generate(ids[:, :8], max_new_tokens=4, **options)
        for _ in range(a.steps):
            start = time.perf_counter()
            model(input_ids=ids, logits_to_keep=1)
            prompts.append(512 / (time.perf_counter() - start))
            start = time.perf_counter()
            model.generate(ids[:, :16], max_new_tokens=64, min_new_tokens=64, **options)
            decodes.append(64 / (time.perf_counter() - start))
    report(prompt_tokens_per_s=statistics.median(prompts), decode_tokens_per_s=statistics.median(decodes))


def worker_llama(a):
    from llama_cpp import Llama

    model = Llama(a.gguf, n_ctx=600, n_threads=a.threads, n_threads_batch=a.threads, n_batch=512, verbose=False)
    ids = token_ids(0, 512, model.n_vocab())
    prompts, decodes = [], []
    for _ in range(a.steps + 1):
        model.reset()
        start = time.perf_counter()
        model.eval(ids)
        prompts.append(512 / (time.perf_counter() - start))
        model.reset()
        model.eval(ids[:16])
        # Inside the engine: sampling in Python is left out.
        seconds, token = 0.0, model.sample(temp=0.0)
        for _ in range(63):
            start = time.perf_counter()
            model.eval([token])
            seconds += time.perf_counter() - start
            token = model.sample(temp=0.0)
        decodes.append(63 / seconds)
    report(prompt_tokens_per_s=statistics.median(prompts[1:]), decode_tokens_per_s=statistics.median(decodes[1:]))


def worker_requantize(a):
    """The GGUF once more as Q4_0, by llama.cpp's own quantizer."""
    import ctypes

    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype, parameters.allow_requantize = a.threads, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(a.gguf.encode(), a.model.encode(), ctypes.byref(parameters)) != 0:
        raise SystemExit("llama.cpp could not quantize " + a.gguf)


def worker_quantize(a):
    torch = torch_with(a.threads)
    import bitsandbytes.functional as functional

    values = torch.randn(4096, 11008).to(torch.bfloat16 if a.dtype == "bf16" else torch.float32) * 0.02
    seconds = []
    for _ in range(a.steps + 1):
        start = time.perf_counter()
        functional.quantize_4bit(values, blocksize=64, quant_type="nf4", compress_statistics=True)
        seconds.append(time.perf_counter() - start)
    report(gvalues_per_s=values.numel() / statistics.median(seconds[1:]) / 1e9)


# The driver.


def environment(threads):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, **{name: str(threads) for name in names}}


def run(command, threads):
    done = subprocess.run(command, env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\nfailed:\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


class Bench:
    def __init__(self, a, folder):
        self.a, self.folder = a, folder

    def worker(self, python, name, **values):
        options = [part for key, value in values.items() for part in (f"--{key}", str(value))]
        return [python, os.path.abspath(__file__), "--worker", name, "--threads", str(self.a.threads), *options]

    def peer(self, name, **values):
        return self.worker(self.a.python, name, **values)

    def ours(self, *arguments):
        return [self.a.ours, "bench", *arguments, "--threads", str(self.a.threads)]

    def model(self, shape, dtype):
        model, adapter = (os.path.join(self.folder, f"{what}-{shape}-{dtype}") for what in ("model", "adapter"))
        if not os.path.exists(adapter):
            run(self.peer("model", shape=shape, dtype=dtype, model=model, adapter=adapter), self.a.threads)
        return model, adapter

    def chat_model(self):
        """The model that generates: SmolLM2 where there is its GGUF, since decoding depends on how peaked logits are."""
        if not self.a.gguf:
            return self.model("135m", "bf16")[0]
        model = os.path.join(self.folder, "smollm2-bf16")
        if not os.path.exists(model):
            run([self.a.ours, "import", self.a.gguf, "--out", model, "--dtype", "bf16"], self.a.threads)
        return model

    def compare(self, name, key, ours, peers):
        """Alternates ours with each of the peers."""
        print(f"\n{name}\n  ours: {shlex.join(ours)}")
        for peer, command in peers.items():
            print(f"  {peer}: {shlex.join(command)}")
        commands = {"ours": ours, **peers}
        found = {who: [] for who in commands}
        for round_ in range(self.a.rounds):
            order = list(commands) if round_ % 2 == 0 else list(commands)[::-1]
            for who in order:
                found[who].append(run(commands[who], self.a.threads))
        rates = {who: [result[key] for result in results] for who, results in found.items()}
        # Quantising reports no memory: both make their input first.
        memory = {who: max(result.get("peak_rss_mib", 0) for result in results) or "" for who, results in found.items()}
        for peer in peers:
            ratio = statistics.median(o / p for o, p in zip(rates["ours"], rates[peer]))
            medians = [statistics.median(rates[who]) for who in ("ours", peer)]
            print(f"| {name} | {medians[0]:.4g} | {peer} {medians[1]:.4g} | {ratio:.2f} x | {memory['ours']} | {memory[peer]} |", flush=True)

    def train(self, dtype):
        a = self.a
        model, adapter = self.model(a.shape, dtype)
        common = dict(model=model, adapter=adapter, dtype=dtype, seq=a.seq)
        peer = lambda steps: self.peer("train", steps=steps, warmup=1, **common)
        flat = [part for key, value in common.items() for part in (f"--{key}", str(value))]
        ours = lambda steps: self.ours("train", *flat, "--steps", str(steps), "--warmup", "1")
        if a.losses:
            losses = [run(command, a.threads)["losses"] for command in (ours(a.losses - 1), peer(a.losses - 1))]
            worst = max(abs(o - p) / abs(p) for o, p in zip(*losses))
            limit = 1e-4 if dtype == "f32" else 1e-2
            print(f"train-{dtype}: {len(losses[0])} losses, worst relative difference {worst:.1e} (limit {limit:.0e})", flush=True)
            if worst > limit:
                raise SystemExit("not the same work: the ratio would mean nothing")
        name = f"train {a.shape} {dtype} {a.seq}, tok/s"
        self.compare(name, "tokens_per_s", ours(a.steps), {"transformers+peft+bitsandbytes": peer(a.steps)})

    def generate(self, key, name):
        a = self.a
        model = self.chat_model()
        prompt = "512" if key.startswith("prompt") else "16"
        peers = {"transformers bf16": self.peer("generate", model=model, steps=3)}
        if a.llama_python and a.gguf:
            q4 = os.path.join(self.folder, "q4_0.gguf")
            if not os.path.exists(q4):
                run(self.worker(a.llama_python, "requantize", gguf=a.gguf, model=q4), a.threads)
            peers["llama.cpp Q4_0"] = self.worker(a.llama_python, "llama", gguf=q4, steps=5)
        for dtype in ("f32", "bf16"):
            ours = self.ours("decode", "--model", model, "--dtype", dtype, "--prompt", prompt, "--tokens", "64", "--steps", "5")
            self.compare(f"{name} {dtype}, tok/s", key, ours, peers)

    def part(self, name):
        if name.startswith("train-"):
            self.train(name.removeprefix("train-"))
        elif name == "quantize":
            for dtype in ("f32", "bf16"):
                peer = {"bitsandbytes": self.peer("quantize", dtype=dtype, steps=3)}
                self.compare(f"quantize {dtype}, Gvalues/s", "gvalues_per_s", self.ours("quantize", "--dtype", dtype), peer)
        else:
            self.generate(f"{name}_tokens_per_s", f"{name} 135m")


PARTS = ["train-f32", "train-bf16", "decode", "prompt", "quantize"]
WORKERS = {name.removeprefix("worker_"): function for name, function in list(globals().items()) if name.startswith("worker_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--ours", default="target/release/llamantino")
    parser.add_argument("--python", default=sys.executable, help="python that has torch, transformers, peft, bitsandbytes")
    parser.add_argument("--llama-python", help="python that has llama-cpp-python")
    parser.add_argument("--gguf", help="SmolLM2-135M as GGUF: for llama.cpp as Q4_0, for the others as bf16")
    parser.add_argument("--folder", help="keeps models here instead of in a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", type=int, default=20, help="losses compared before training is timed; 0: none")
    for name, default in (("threads", 2), ("seq", 512), ("steps", 4), ("warmup", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        return WORKERS[a.worker](a)
    unknown = [part for part in a.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)} (of {', '.join(PARTS)})")
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or temporary
        os.makedirs(folder, exist_ok=True)
        bench = Bench(a, folder)
        for part in a.parts or PARTS:
            bench.part(part)


if __name__ == "__main__":
    main()

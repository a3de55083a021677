#!/usr/bin/env python3
"""Compares llama.cpp on our GGUF files with transformers on the same model, and with our own generation.

    python interop_llama.py reference --model HF_FOLDER --out REFERENCE.npz      (torch, transformers)
    python interop_llama.py compare --reference ... --f32 ... --f16 ... --model HF_FOLDER --binary llamantino
    python interop_llama.py adapter --reference ... --f32 BASE.gguf --lora ADAPTER.gguf
    python interop_llama.py random --tokenizer FOLDER --out FOLDER               (torch, transformers)
    python interop_llama.py tokens --gguf MODEL.gguf --vectors ggml-vocab-NAME.gguf

`compare` demands: F32 logits within 1e-3 of the largest at every position; the greedy text of 32 prompts equal to ours,
but for places where the two best tokens are within 1e-3 of each other; F16 teacher-forced best token equal to the
reference's at 99 % of the places. All but `reference` and `random` need llama-cpp-python and numpy only.
"""
import argparse, json, subprocess, sys
import numpy as np

BEGINNINGS = """Il mare|La mattina|C'era una volta|Il treno delle sette|Mia nonna|Il pane|La città di notte|Un gatto nero
Once upon a time|The little girl|He went to the|In the morning|One day, a|The sun was|They all|Her name was
Perché la luna|Quando piove|Il medico disse|La maestra entrò|Sotto il ponte|Due amici|La lettera|Dopo cena
1 2 3 4|if (x == 0) {|Caro diario,|\u00c8 vero che|La capitale d'Italia|What is|A dog and a cat|Fine."""
PROMPTS = [prompt for line in BEGINNINGS.splitlines() for prompt in line.split("|")]
TEXT = " ".join(PROMPTS) + " Il treno parte alle sette, e la gente sale in silenzio. The children played in the park."
LENGTH, NEW = 192, 24


def reference(a):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(a.model)(TEXT).input_ids[:LENGTH]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.savez(a.out, ids=np.array(ids), logits=logits)


def random(a):
    import shutil, torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(a.out)
    shutil.copy(f"{a.tokenizer}/tokenizer.json", f"{a.out}/tokenizer.json")


def opened(path, **more):
    from llama_cpp import Llama
    # The cache in f32 (type 0): its default is f16, which alone costs more than what is measured here.
    # One thread: several wait for each other by spinning, which takes forever on a busy machine.
    return Llama(path, n_ctx=512, n_batch=512, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1, type_k=0,
                 type_v=0, **more)


def logits_of(llama, ids):
    llama.reset()
    llama.eval([int(i) for i in ids])
    return np.array(llama.scores[: len(ids)])


def distance(logits, expected):
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def near_tie(llama, ids, largest):
    best = np.sort(logits_of(llama, ids)[-1])[-2:]
    return float((best[1] - best[0]) / largest) < 1e-3


def greedy(llama, prompt):
    """Ids of prompt and continuation. The prompt is encoded as llama.cpp does it by itself: BOS as the file says."""
    ids = llama.tokenize(prompt.encode(), add_bos=True, special=False)
    start = len(ids)
    stops = {llama.token_eos()}
    logits_of(llama, ids)
    while len(ids) < start + NEW:
        best = int(llama.scores[len(ids) - 1].argmax())
        if best in stops:
            break
        ids.append(best)
        llama.eval([best])
    return ids, start


def compare(a):
    stored = np.load(a.reference)
    ids, expected = stored["ids"], stored["logits"]
    llama = opened(a.f32)
    f32 = distance(logits_of(llama, ids), expected)
    tokens = llama.tokenize(TEXT.encode(), add_bos=True, special=False)[: len(ids)] == ids.tolist()
    largest = np.abs(expected).max()
    equal, ties, wrong = 0, 0, []
    for prompt in PROMPTS:
        found, start = greedy(llama, prompt)
        text = llama.detokenize(found[start:], prev_tokens=found[:start]).decode(errors="replace")
        command = [a.binary, "generate", "--model", a.model, "--prompt", prompt, "--max-tokens", str(NEW)]
        ours = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        if text.strip() == ours.strip():
            equal += 1
            continue
        # The first token in which they differ: where the text so far is ours too.
        agreed = next((n for n in range(start, len(found)) if not ours.strip().startswith(
            llama.detokenize(found[start:n + 1], prev_tokens=found[:start]).decode(errors="ignore").strip())), start)
        if near_tie(llama, found[:agreed], largest):
            ties += 1
        else:
            wrong.append([prompt, text, ours])
    half = logits_of(opened(a.f16), ids)
    top1 = float((half.argmax(-1) == expected.argmax(-1)).mean())
    print(json.dumps({"f32_logits": f32, "same_tokens": tokens, "greedy_equal": equal, "near_ties": ties,
                      "greedy_wrong": wrong[:2], "f16_logits": distance(half, expected), "f16_top1": top1},
                     ensure_ascii=False))
    sys.exit(0 if f32 <= 1e-3 and tokens and not wrong and top1 >= 0.99 else 1)


def adapter(a):
    stored = np.load(a.reference)
    ids, expected = stored["ids"], stored["logits"]
    plain = distance(logits_of(opened(a.f32), ids), expected)
    adapted = distance(logits_of(opened(a.f32, lora_path=a.lora), ids), expected)
    print(json.dumps({"without": plain, "with_adapter": adapted}))
    sys.exit(0 if adapted <= 1e-3 < plain else 1)


def tokens(a):
    """llama.cpp's own vectors: texts in NAME.inp, ids in NAME.out."""
    from llama_cpp import Llama
    llama = Llama(a.gguf, vocab_only=True, verbose=False)
    texts = open(a.vectors + ".inp", encoding="utf-8", newline="").read().split("\n__ggml_vocab_test__\n")
    # Split and not splitlines: the last text is empty, and so is its line.
    lines = open(a.vectors + ".out", encoding="utf-8").read().split("\n")
    pairs = [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines)]
    wrong = [text for text, ids in pairs if llama.tokenize(text.encode(), add_bos=False, special=False) != ids]
    print(json.dumps({"vectors": len(pairs), "wrong": wrong[:3]}, ensure_ascii=False))
    sys.exit(0 if not wrong and len(pairs) == 47 else 1)


parser = argparse.ArgumentParser()
commands = parser.add_subparsers(required=True)
options = {reference: "model out", random: "tokenizer out", compare: "reference f32 f16 model binary",
           adapter: "reference f32 lora", tokens: "gguf vectors"}
for function, names in options.items():
    command = commands.add_parser(function.__name__)
    command.set_defaults(function=function)
    for name in names.split():
        command.add_argument(f"--{name}", required=True)
arguments = parser.parse_args()
arguments.function(arguments)

#!/usr/bin/env python3
"""Makes tests/golden/eval by transformers in f32: what `llamantino eval` must find on texts of this project.

    python3 -m pip install torch transformers gguf accelerate
    eval "$(scripts/assets.sh)" && python3 scripts/golden_eval.py "$LLAMANTINO_SMOLLM2"

`choices.jsonl`: 50 questions in the form of m_hellaswag: which sentence goes on, made of data/italian (the right one and
three from other texts). `smollm2.json`: for each held-out text the sum of the token losses in windows of 256 tokens with a
stride of 128, and for each question the log-likelihood of every choice. The weights are the GGUF file's, dequantised by
transformers to f32. Windows and pairs are cut here by hand, as HF's "Perplexity of fixed-length models" and
lm-evaluation-harness describe them.
"""

import json
import math
import os
import pathlib
import random
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/eval"
WINDOW, STRIDE = 256, 128


def questions():
    """50 questions with a fixed seed."""
    draw = random.Random(7)
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data/italian").rglob("*.txt"))]
    sentences = [[s.strip() for s in re.split(r"(?<=[.!?])\s+", text) if 30 < len(s) < 140] for text in texts]
    made = []
    while len(made) < 50:
        right, *others = draw.sample(range(len(texts)), 4)
        place = draw.randrange(len(sentences[right]) - 1)
        endings = [sentences[right][place + 1]] + [draw.choice(sentences[other]) for other in others]
        order = draw.sample(range(4), 4)
        made.append({"ind": len(made), "activity_label": "Racconto", "ctx_a": sentences[right][place],
                     "ctx_b": "allora [header] si legge:", "endings": [endings[i] for i in order],
                     "label": str(order.index(0))})
    return made


def log_probabilities(model, ids):
    """Of each token but the first."""
    logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]


def window_loss(model, ids):
    """Every token but the first once; a window after the first begins STRIDE tokens after the one before it."""
    total, done = 0.0, 1
    while done < len(ids):
        start, end = (0, done + WINDOW) if done == 1 else (done - 1 - (WINDOW - STRIDE), done + STRIDE)
        end = min(end, len(ids))
        total -= log_probabilities(model, ids[start:end])[done - 1 - start:].sum().item()
        done = end
    return total


def clean(text):
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    GOLDEN.mkdir(parents=True, exist_ok=True)
    documents = []
    for path in sorted((ROOT / "data/italian/held-out").glob("*.txt")):
        text = path.read_text(encoding="utf-8").rstrip("\n")
        ids = encode(text)
        first = len(tokenizer.decode(ids[:1]).encode())
        documents.append({"file": path.name, "nats": window_loss(model, ids), "tokens": len(ids) - 1,
                          "bytes": len(text.encode()) - first})
    made = questions()
    (GOLDEN / "choices.jsonl").write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in made), encoding="utf-8")
    choices = []
    for question in made:
        ctx = question["ctx_a"] + " " + question["ctx_b"].capitalize()
        context = clean(question["activity_label"] + ": " + ctx)
        before = encode(context)
        sums = []
        for ending in question["endings"]:
            scored = encode(context + " " + clean(ending))[len(before):]
            sums.append(log_probabilities(model, before + scored)[len(before) - 1:].sum().item())
        choices.append(sums)
    right = [int(q["label"]) for q in made]
    per_character = [[s / len(clean(e)) for s, e in zip(sums, q["endings"])] for sums, q in zip(choices, made)]
    share = lambda table: sum(max(range(4), key=row.__getitem__) == r for row, r in zip(table, right)) / len(made)
    nats, tokens = sum(d["nats"] for d in documents), sum(d["tokens"] for d in documents)
    golden = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "window": WINDOW, "stride": STRIDE, "documents": documents,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / sum(d["bytes"] for d in documents),
        "log_likelihoods": choices, "acc": share(choices), "acc_norm": share(per_character),
    }
    (GOLDEN / "smollm2.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print({key: golden[key] for key in ("perplexity", "bits_per_byte", "acc", "acc_norm")}, file=sys.stderr)


main()

"""Perplexity by transformers in f32: makes tests/golden/smollm2/perplexity.json, which tests/smollm2.rs compares with.

    python3 -m pip install torch transformers gguf accelerate
    eval "$(scripts/assets.sh)" && python3 scripts/golden_perplexity.py "$LLAMANTINO_SMOLLM2"

The texts and their ids are those of tests/golden/smollm2/tokens.json (llama.cpp's), each a document of its own without a
token before it; the weights are the GGUF file's, dequantised by transformers to f32.
"""

import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/smollm2"


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    losses = []
    for ids in json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))["ids"]:
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:], dtype=torch.long), reduction="none"))
    every = torch.cat(losses)
    golden = {
        "made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "predicted": len(every),
        "perplexity": every.mean().exp().item(),
        # Sums, so that a text of one token (nothing to predict) has one too.
        "loss_sums": [loss.sum().item() for loss in losses],
    }
    (GOLDEN / "perplexity.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{golden['predicted']} tokens, perplexity {golden['perplexity']:.6f}", file=sys.stderr)


main()

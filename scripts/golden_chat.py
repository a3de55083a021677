#!/usr/bin/env python3
"""Makes tests/golden/chat/labels.json: what the built-in templates are as token ids, and which tokens are trained, by the
tokenizers library of Hugging Face and the texts in src/data/template/tests/ (trained stretches stand in ⟦ ⟧ there).

    python3 scripts/golden_chat.py --llama2 LLAMA2_FOLDER > tests/golden/chat/labels.json

Rules: BOS once at the start; `<s>` and `</s>` of a template are the model's tokens; a token is trained when its
characters lie inside a trained stretch; where a token would cross the border of one, the text is cut there. Needs the
package `tokenizers`; LLAMA2_FOLDER holds the LLaMA-2 tokenizer.json.
"""
import argparse, json, pathlib, re

ROOT = pathlib.Path(__file__).resolve().parent.parent
from tokenizers import Tokenizer  # noqa: E402


def case(tokenizer, bos, eos, marked):
    marked = marked.removesuffix("\n").replace("</s>", eos).replace("<s>", bos)
    text, spans = "", []
    for part in re.split(r"(⟦[^⟧]*⟧)", marked):
        if part.startswith("⟦"):
            spans.append((len(text), len(text) + len(part) - 2))
            part = part[1:-1]
        text += part
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids, trained = [tokenizer.token_to_id(bos)], [0]
    for id, (start, end) in zip(encoding.ids, encoding.offsets):
        assert not any(start < border < end for span in spans for border in span), (text[start:end], spans)
        ids.append(id)
        trained.append(int(any(low <= start and end <= high for low, high in spans)))
    return {"ids": ids, "trained": trained}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama2", required=True)
    arguments = parser.parse_args()
    files = sorted((ROOT / "src/data/template/tests").glob("*.txt"))
    result = {}
    for name, folder in [("bundled", ROOT / "data/quickstart/model"), ("llama2", pathlib.Path(arguments.llama2))]:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        bos, eos = "<s>", "</s>"
        if name == "bundled":
            config = json.loads((folder / "tokenizer_config.json").read_text())
            bos, eos = config["bos_token"], config["eos_token"]
        result[name] = {file.stem: case(tokenizer, bos, eos, file.read_text()) for file in files}
    print(json.dumps(result, separators=(",", ":")))


main()

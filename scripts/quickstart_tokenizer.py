"""Trains the byte-level BPE tokenizer of the bundled quickstart model and writes the folder that its training starts from.

    python3 scripts/quickstart_tokenizer.py ENGLISH.jsonl OUT [VOCABULARY]

OUT gets tokenizer.json, tokenizer_config.json, config.json and generation_config.json. Ids: 0 <s>, 1 </s>, the 256
bytes, the letters of Italian that ASCII lacks (one token each, so that no letter costs two), then the merges learnt
from the text, most frequent pair first, ties by the smaller ids. Pre-tokenization is GPT-2's. Python's standard library
is all it needs. Reference: Sennrich et al. 2016; byte alphabet and pattern as in GPT-2.
"""

import collections
import json
import os
import re
import sys

VOCABULARY = 4096
ITALIAN = "àèéìíîòóùúÀÈÉÌÒÙ«»"
# GPT-2's pattern in Python's dialect: letters are word characters but digits and the underscore.
PATTERN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters, spare = {}, 256
    for byte in range(256):
        if byte in kept:
            letters[byte] = chr(byte)
        else:
            letters[byte], spare = chr(spare), spare + 1
    return letters


def word_counts(path):
    """How often each pre-token occurs, as UTF-8 bytes."""
    counts = collections.Counter()
    with open(path, encoding="utf-8") as file:
        for line in file:
            counts.update(PATTERN.findall(json.loads(line)["text"]))
    return counts


class Trainer:
    """Words as lists of ids, with the number of every pair kept up to date from merge to merge."""

    def __init__(self, counts, first_id):
        self.merges = []
        self.ids = {byte: first_id + byte for byte in range(256)}
        self.spelling = {id: bytes([byte]) for byte, id in self.ids.items()}
        self.words, self.counts = [], []
        for word, count in sorted(counts.items()):
            self.words.append([self.ids[byte] for byte in word.encode()])
            self.counts.append(count)
        self.next, self.made = first_id + 256, {}
        self.pairs, self.where = collections.Counter(), collections.defaultdict(set)
        for index, word in enumerate(self.words):
            self.note(index, word, 1)

    def note(self, index, word, sign):
        for pair in zip(word, word[1:]):
            self.pairs[pair] += sign * self.counts[index]
            if sign > 0:
                self.where[pair].add(index)

    def merge(self, pair):
        """Joins `pair` wherever it occurs: to a new id, or to the one that another merge has made of the same bytes."""
        joined = self.spelling[pair[0]] + self.spelling[pair[1]]
        new_id = self.made.setdefault(joined, self.next)
        for index in self.where.pop(pair, ()):
            old, new, at = self.words[index], [], 0
            self.note(index, old, -1)
            while at < len(old):
                if at + 1 < len(old) and (old[at], old[at + 1]) == pair:
                    new.append(new_id)
                    at += 2
                else:
                    new.append(old[at])
                    at += 1
            self.words[index] = new
            self.note(index, new, 1)
        self.pairs.pop(pair, None)
        self.merges.append(pair)
        self.spelling[new_id] = joined
        self.next = max(self.next, new_id + 1)

    def best(self):
        return max(self.pairs, key=lambda pair: (self.pairs[pair], -pair[0], -pair[1]))


def train(counts, size):
    """The vocabulary {text: id} and the merges [[left, right]]."""
    special = ["<s>", "</s>"]
    trainer = Trainer(counts, len(special))
    for letter in ITALIAN:
        left, right = (trainer.ids[byte] for byte in letter.encode())
        trainer.merge((left, right))
    while trainer.next < size:
        trainer.merge(trainer.best())
    letters = byte_alphabet()
    names = {id: "".join(letters[byte] for byte in spelling) for id, spelling in trainer.spelling.items()}
    vocabulary = {name: id for id, name in [*enumerate(special), *sorted(names.items())]}
    return vocabulary, [[names[left], names[right]] for left, right in trainer.merges]


def files(vocabulary, merges):
    """The files of the folder, as JSON values."""
    size = len(vocabulary)
    added = [
        {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for id, text in enumerate(["<s>", "</s>"])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 7,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
        },
        "config.json": config,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1},
    }


def main():
    text, out = sys.argv[1:3]
    size = int(sys.argv[3]) if len(sys.argv) > 3 else VOCABULARY
    vocabulary, merges = train(word_counts(text), size)
    os.makedirs(out, exist_ok=True)
    for name, value in files(vocabulary, merges).items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1 if name != "tokenizer.json" else None)
            file.write("\n")
    print(f"{out}: {len(vocabulary)} tokens", file=sys.stderr)


main()

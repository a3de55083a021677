"""Splits the data of scripts/experiment.sh by hash.

    python3 scripts/experiment_data.py SOURCES MANUALS OUT

SOURCES holds the public files that scripts/experiment.sh names, MANUALS what scripts/italian-manuals.sh wrote (its
packages too). OUT gets

    italian/{train,validation,test}.jsonl       Wikipedia paragraphs, 90/5/5
    dialogues/{train,validation,test}.jsonl     advice on food, 90/5/5
    questions/{train,validation,test}.jsonl     questions to a water utility and their answers, 90/5/5
    evalita/{train,validation}.tsv, test.tsv    five tasks of train_100, 90/10; the test rows are those of dev_100
    replay/train.jsonl                          LibreOffice's English help
    exams_it/test.jsonl, xcopa_it/test.it.jsonl as they are
    out-of-domain/{validation,test}.jsonl       pages of the Debian handbook in Italian, never trained on
    english/{validation,test}.jsonl             the same pages in English, never trained on

A record falls by the SHA-256 of its line, as a number, modulo 20: 0 is test, 1 validation (of train_100: 0 and 1), the
rest is trained on. A page of the handbook falls by its file's name modulo 10: 0 is test, 1 validation. Nothing looks at
the text. Texts to measure end with the record that passes so many bytes: every run of the search reads the validation texts
twice, two cores read the test texts of every stage.
"""

import glob
import gzip
import hashlib
import json
import os
import sys

import italian_manuals

MOST_BYTES = {"validation": 8_000, "test": 40_000, "train": float("inf")}
# The subtasks whose labels are usable in files of a hundred rows.
TASKS = {"haspeede", "hodi_a", "acti_a", "emit_b", "langlearn"}


def remainder(line, by):
    return int.from_bytes(hashlib.sha256(line.encode()).digest(), "big") % by


def write(path, lines):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    print(f"{path}: {len(lines)} records, {sum(len(line.encode()) for line in lines)} bytes", file=sys.stderr)


def lines_of(pattern):
    paths = sorted(glob.glob(pattern))
    assert paths, f"{pattern}: no such file"
    for path in paths:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="\n") as file:
            yield from (line for line in file.read().split("\n") if line.strip())


def task_rows(path):
    return [row for row in lines_of(path) if row.split("\t")[1] in TASKS]


def beginning(lines, part):
    """The first lines, until they pass what is measured of this part."""
    total, taken = 0, []
    for line in lines:
        if total > MOST_BYTES[part]:
            break
        total += len(line.encode())
        taken.append(line)
    return taken


def split(pattern, out):
    parts = {"test": [], "validation": [], "train": []}
    for line in lines_of(pattern):
        parts[{0: "test", 1: "validation"}.get(remainder(line, 20), "train")].append(line)
    for name, lines in parts.items():
        write(f"{out}/{name}.jsonl", beginning(lines, name))


def handbook(manuals, language, out):
    """The pages that hash to 0 and 1, as documents."""
    folder = f"{manuals}/packages/debian-handbook/usr/share/doc/debian-handbook/html/{language}"
    pages = italian_manuals.pages_of(folder)
    for part, name in enumerate(["test", "validation"]):
        chosen = [page for page in pages if remainder(page[0], 10) == part]
        lines = [json.dumps(page, ensure_ascii=False) for page in italian_manuals.documents(chosen, language[:2], set())]
        write(f"{out}/{name}.jsonl", beginning(lines, name))


def main():
    sources, manuals, out = sys.argv[1:]
    split(f"{sources}/wiki_it/*.json.gz", f"{out}/italian")
    split(f"{sources}/dialogue_it/ilisten_ultrachat.jsonl", f"{out}/dialogues")
    split(f"{sources}/dialogue_it/qa4faq_dolly.jsonl", f"{out}/questions")
    rows, test = (task_rows(f"{sources}/evalita/{name}_100.tsv") for name in ["train", "dev"])
    write(f"{out}/evalita/train.tsv", [row for row in rows if remainder(row, 20) > 1])
    write(f"{out}/evalita/validation.tsv", [row for row in rows if remainder(row, 20) <= 1])
    write(f"{out}/evalita/test.tsv", test)
    handbook(manuals, "it-IT", f"{out}/out-of-domain")
    handbook(manuals, "en-US", f"{out}/english")
    for name in ["exams_it/test.jsonl", "xcopa_it/test.it.jsonl"]:
        write(f"{out}/{name}", list(lines_of(f"{sources}/{name}")))
    help_pages = italian_manuals.pages_of(f"{manuals}/packages/libreoffice-help-en-us/{italian_manuals.HELP}/en-US")
    texts = list(italian_manuals.documents(help_pages, "en", set()))
    texts.sort(key=lambda document: hashlib.sha256(document["file"].encode()).digest())
    write(f"{out}/replay/train.jsonl", [json.dumps(document, ensure_ascii=False) for document in texts])


if __name__ == "__main__":
    main()

"""Turns public repositories into the SOURCES that `scripts/experiment.sh data` takes.

    python3 scripts/experiment_sources.py CLONES SOURCES

CLONES holds clones of the five repositories that scripts/experiment.sh names, under their own names, but for those that
are both called `data`: evalita2016-data and evalita2018-data. SOURCES gets the files of that script's header.

What is done to each, and no more:

    wiki_it      the paragraphs beside each answer of an exam question, as one record; a sentence that an earlier record
                 has is left out, and so is a record of less than 200 characters
    exams_it     the Italian questions, in the form they have
    xcopa_it     the lines as they are
    dialogues    turns in a row of one speaker are one turn, blanks are one blank; "Ciao!" before a system that begins,
                 and a last turn that nobody answers is left out: a dialogue is pairs of what a user says and the answer
    questions    as {"instruction", "context", "response", "category"}
    evalita      the lines as they are
"""

import gzip
import json
import os
import re
import sys
import tarfile
import xml.etree.ElementTree as xml

EXAMS = "exams-qa/data/exams"
FEWEST_CHARACTERS = 200
SENTENCE_END = re.compile(r"""(?<=[.!?])\s+(?=["«(]?[A-ZÀ-Ý0-9])""")


def write(path, lines, opened=open):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    count = 0
    with opened(path, "wt", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    if count == 0:
        sys.exit(f"{path}: nothing to write into it: is its source the revision that scripts/experiment.sh names?")
    print(f"{path}: {count} records", file=sys.stderr)


def as_line(value):
    return json.dumps(value, ensure_ascii=False)


def lines_of(path):
    with open(path, encoding="utf-8", newline="\n") as file:
        yield from (line for line in file.read().split("\n") if line.strip())


def packed(path):
    """Records of a .jsonl.tar.gz."""
    with tarfile.open(path) as archive:
        # Archives made on a Mac have a file of attributes, ._NAME, beside each.
        names = [name for name in archive.getnames() if name.endswith(".jsonl") and "._" not in name]
        if len(names) != 1:
            sys.exit(f"{path}: expected one .jsonl file in it, found {names}")
        for line in archive.extractfile(names[0]).read().decode("utf-8").splitlines():
            if line.strip():
                yield json.loads(line)


def wikipedia(clones):
    seen, number = set(), 0
    for part in ["train", "dev"]:
        for record in packed(f"{clones}/{EXAMS}/cross-lingual/with_paragraphs/{part}_it_with_para.jsonl.tar.gz"):
            for choice in record["question"]["choices"]:
                lines = (" ".join(line.split()) for line in choice.get("para", "").split("\n"))
                sentences = [sentence for line in lines for sentence in SENTENCE_END.split(line) if sentence]
                # A dict and not a set: a record, too, may say a sentence twice, and its order stays.
                new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in seen]
                text = " ".join(new)
                if len(text) < FEWEST_CHARACTERS:
                    continue
                seen.update(new)
                url = f"https://it.wikipedia.org/#exams-{number}"
                yield as_line({"timestamp": "2020-11-01T00:00:00Z", "url": url, "text": text})
                number += 1


def exams(clones):
    for record in packed(f"{clones}/{EXAMS}/multilingual/test.jsonl.tar.gz"):
        if record["info"]["language"] == "Italian":
            yield as_line(record)


def dialogues(clones):
    """ILISTEN: speech acts whose ids end with S (the system) or U (the user) and a number."""
    for number, dialogue in enumerate(xml.parse(f"{clones}/evalita2018-data/ILISTEN/training.xml").getroot()):
        turns = []
        for act in dialogue.iter("speechAct"):
            speaker = act.get("id").rsplit("_", 1)[1][0]
            text = " ".join("".join(act.itertext()).split())
            if turns and turns[-1][0] == speaker:
                turns[-1][1] += " " + text
            elif text:
                turns.append([speaker, text])
        if turns and turns[0][0] == "S":
            turns.insert(0, ["U", "Ciao!"])
        turns = turns[: len(turns) // 2 * 2]
        if turns:
            yield as_line({"id": str(number), "data": [text for _, text in turns]})


def questions(clones):
    for faq in xml.parse(f"{clones}/evalita2016-data/qa4faq/qa4faq_dev_v3/faqs_uft8_QA.xml").getroot().iter("faq"):
        question, answer = (faq.findtext(part, "").strip() for part in ["question", "answer"])
        if question and answer:
            yield as_line({"instruction": question, "context": "", "response": answer, "category": "open_qa"})


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python3 scripts/experiment_sources.py CLONES SOURCES")
    clones, out = sys.argv[1:]
    write(f"{out}/wiki_it/paragraphs.json.gz", wikipedia(clones), gzip.open)
    write(f"{out}/exams_it/test.jsonl", exams(clones))
    write(f"{out}/xcopa_it/test.it.jsonl", lines_of(f"{clones}/xcopa/data/it/test.it.jsonl"))
    write(f"{out}/dialogue_it/ilisten_ultrachat.jsonl", dialogues(clones))
    write(f"{out}/dialogue_it/qa4faq_dolly.jsonl", questions(clones))
    for part in ["train", "dev"]:
        lines = lines_of(f"{clones}/CLiC-it_2023_tutorial/data/{part}_100.txt")
        write(f"{out}/evalita/{part}_100.tsv", lines)


if __name__ == "__main__":
    main()

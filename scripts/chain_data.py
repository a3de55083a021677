"""Makes dialogues and instructions out of the Italian part of chatterbot-corpus.

    python3 scripts/chain_data.py WHEEL FOLDER

Files about knowledge become instructions {"instruction", "context", "response", "category"}, the others dialogues
{"id", "data": [user, assistant, ...]}. A last turn without an answer is left out, and so are copies.
"""

import json
import sys
import zipfile

KNOWLEDGE = {"computers", "health", "history", "literature", "money", "movies", "science", "sports", "trivia"}
PREFIX = "chatterbot_corpus/data/italian/"


def scalar(lines):
    """A YAML scalar in the forms that the files use: plain, or in quotes, over one or more lines."""
    text = " ".join(line.strip() for line in lines)
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return json.loads(text.replace("\\ ", " "))
    return text


def conversations(text):
    """The lists of turns of a file: `- - first`, `  - next`, `    more of it`."""
    _, _, body = text.partition("\nconversations:\n")
    found = []
    for line in body.splitlines():
        if line.startswith("- - "):
            found.append([[line[4:]]])
        elif line.startswith("  - "):
            found[-1].append([line[4:]])
        elif line.strip():
            found[-1][-1].append(line)
    return [[scalar(turn).strip() for turn in turns] for turns in found]


def main(wheel, folder):
    dialogues, instructions, seen = [], [], set()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith(PREFIX) and n.endswith(".yml")):
            topic = name[len(PREFIX):-len(".yml")]
            for turns in conversations(archive.read(name).decode("utf-8")):
                turns = turns[:len(turns) // 2 * 2]
                if not turns or not all(turns) or tuple(turns) in seen:
                    continue
                seen.add(tuple(turns))
                if topic in KNOWLEDGE and len(turns) == 2:
                    question, answer = turns
                    instructions.append(
                        {"instruction": question, "context": "", "response": answer, "category": topic})
                else:
                    dialogues.append({"id": str(len(dialogues)), "data": turns})
    for name, rows in [("dialogues.jsonl", dialogues), ("instructions.jsonl", instructions)]:
        with open(f"{folder}/{name}", "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{folder}/{name}: {len(rows)} rows", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: chain_data.py WHEEL FOLDER")
    main(sys.argv[1], sys.argv[2])

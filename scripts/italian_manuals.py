"""Italian manuals as JSON lines ({"text", "file"}), one page a document, out of unpacked Debian packages.

    python3 scripts/italian_manuals.py UNPACKED OUT

UNPACKED holds one folder a package, as scripts/italian-manuals.sh leaves them. OUT gets

    train.jsonl          LibreOffice's help in Italian, without the pages held out
    held-out.jsonl       the pages held out: same manual, never trained on
    out-of-domain.jsonl  every tenth page of the Debian handbook in Italian: another manual, never trained on
    english.jsonl        the pages held out, in LibreOffice's English help: what adaptation makes the model forget

A page is held out when the SHA-256 of its path in the help (text/swriter/01/05120000.html), read as a number, divides by
50; a page of the handbook is taken when that of its file name divides by 10. Neither looks at the text. A paragraph comes
once in a file, and one that is trained on is not measured on. The same packages give the same bytes.
Python's standard library is all it needs.
"""

import glob
import hashlib
import json
import re
import sys

from html_text import Paragraphs, blocks_of

HELP = "usr/share/libreoffice/help"
HANDBOOK = "usr/share/doc/debian-handbook/html/it-IT"
ITALIAN = set("il lo la i gli le un uno una di del della dei degli delle da dal dalla in nel nella con su sul sulla per tra "
              "fra e o che non si è sono come anche più questo questa se al alla ai agli alle ma".split())
ENGLISH = set("the a an of to in on for with and or is are be this that you can it if as by from not when your which".split())


class Manual(Paragraphs):
    """A manual's page: tables hold text here, and what frames the page is left out."""

    BLOCKS = Paragraphs.BLOCKS | {"td", "th", "h5", "h6"}
    SILENT = (Paragraphs.SILENT - {"table"}) | {"header", "aside", "footer", "noscript"}


def divides(name, by):
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % by == 0


def clean(block, language):
    """The block on one line, or nothing if it is no sentence of the language."""
    text = " ".join(block.split())
    if len(text) < 40 or sum(c.isalpha() or c == " " for c in text) < 0.8 * len(text):
        return None
    words = re.findall(r"[^\W\d_]+", text.lower())
    italian, english = (sum(word in known for word in words) for known in (ITALIAN, ENGLISH))
    own, other = (italian, english) if language == "it" else (english, italian)
    return text if own > other and own > 0.12 * len(words) else None


def documents(pages, language, seen):
    """Pages as documents, in order; `seen` holds every paragraph that may not come again."""
    for name, path in pages:
        blocks = []
        for block in blocks_of(path, Manual):
            block = clean(block, language)
            if block and block not in seen:
                seen.add(block)
                blocks.append(block)
        if blocks:
            yield {"text": "\n\n".join(blocks), "file": name}


def pages_of(folder):
    """(name in the folder, path) of every page."""
    paths = sorted(glob.glob(f"{folder}/**/*.html", recursive=True))
    return [(path[len(folder) + 1 :], path) for path in paths]


def write(path, texts):
    texts = list(texts)
    # By hash: pages that follow each other in the manual do not in training.
    texts.sort(key=lambda document: hashlib.sha256(document["file"].encode()).digest())
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in texts)
    size = sum(len(document["text"].encode()) for document in texts)
    print(f"{path}: {len(texts)} pages, {size} bytes", file=sys.stderr)


def main():
    unpacked, out = sys.argv[1:]
    italian = pages_of(f"{unpacked}/libreoffice-help-it/{HELP}/it")
    held_out = [page for page in italian if divides(page[0], 50)]
    names = {name for name, _ in held_out}
    english = [page for page in pages_of(f"{unpacked}/libreoffice-help-en-us/{HELP}/en-US") if page[0] in names]
    handbook = [page for page in pages_of(f"{unpacked}/debian-handbook/{HANDBOOK}") if divides(page[0], 10)]
    for what, pages in {"libreoffice-help-it": held_out, "libreoffice-help-en-us": english, "debian-handbook": handbook}.items():
        assert pages, f"{unpacked}/{what}: no page found; does this version keep them elsewhere?"
    seen = set()
    write(f"{out}/train.jsonl", documents([page for page in italian if page[0] not in names], "it", seen))
    write(f"{out}/held-out.jsonl", documents(held_out, "it", set(seen)))
    write(f"{out}/out-of-domain.jsonl", documents(handbook, "it", set(seen)))
    write(f"{out}/english.jsonl", documents(english, "en", set()))


if __name__ == "__main__":
    main()

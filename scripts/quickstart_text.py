"""Clean English prose out of unpacked Debian packages: the documents of the bundled quickstart model.

    python3 scripts/quickstart_text.py UNPACKED OUT.jsonl

UNPACKED holds one folder a package, as scripts/quickstart-text.sh leaves them. A document is 2 to 4 KB of consecutive
paragraphs of one work; no paragraph comes twice; the order is by hash, so the same packages give the same file.
Python's standard library is all it needs.
"""

import glob
import gzip
import hashlib
import json
import re
import struct
import sys
import zlib

from html_text import blocks_of

DOCUMENT = 3000  # characters after which a document is closed
QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2011": "-"})


def austen(package):
    """Six novels, each a character vector of lines in R's serialised form (XDR, zlib)."""
    with open(f"{package}/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb", "rb") as file:
        rest = file.read()
    while rest:
        inflate = zlib.decompressobj()
        data = inflate.decompress(rest[4:])  # four bytes of length come first
        rest = inflate.unused_data
        at = data.index(b"UTF-8", 0, 64) + len("UTF-8")
        kind, count = struct.unpack_from(">II", data, at)
        if kind & 0xFF != 16:
            continue
        at, lines = at + 8, []
        for _ in range(count):
            flags, length = struct.unpack_from(">Ii", data, at)
            at += 8
            assert flags & 0xFF == 9, "a character vector holds strings only"
            lines.append(data[at : at + length].decode("utf-8"))
            at += length
        text = "\n".join(lines).replace("--", "—").replace("_", "")
        for chapter in re.split(r"\n *(?:CHAPTER|Chapter) [IVXLC0-9]+\.?[^\n]*\n", text)[1:]:
            yield chapter.split("\n\n")


def bible(package):
    """The World English Bible in SWORD's zText form: zlib blocks, one a book, of OSIS markup."""
    folder = f"{package}/usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for part in ("ot", "nt"):
        with open(f"{folder}/{part}.bzs", "rb") as index, open(f"{folder}/{part}.bzz", "rb") as blocks:
            index, blocks = index.read(), blocks.read()
        for offset, size, _ in struct.iter_unpack("<III", index):
            book = zlib.decompress(blocks[offset : offset + size]).decode("utf-8", "replace")
            book = re.sub(r"<note.*?</note>|<title.*?</title>", " ", book, flags=re.S)
            for chapter in re.split(r"<chapter [^>]*>", book):
                chapter = re.sub(r'<div [^>]*type="x-p"[^>]*>|<lg[^>]*>', "\n\n", chapter)
                text = re.sub(r"\s+([,.;:?!])", r"\1", re.sub(r"<[^>]*>", "", chapter))
                yield re.sub(r"([,.;:?!])(?=[A-Za-z])", r"\1 ", text).split("\n\n")


def sqlite(package):
    """SQLite's documentation, page by page."""
    for path in sorted(glob.glob(f"{package}/usr/share/doc/sqlite3/**/*.html", recursive=True)):
        if re.search(r"crossref|sitemap|doclist|keyword_index|syntaxdiagrams|requirements|consortium", path):
            continue
        yield blocks_of(path)


def jargon(package):
    """The Jargon File: entries and essays, without the tables of contents before and the bibliography after them."""
    with gzip.open(f"{package}/usr/share/doc/jargon-text/jargon.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    text = re.sub(r"\{([^{}]*)\}", r"\1", text)  # cross-references
    text = re.sub(r"\n +:([^:\n]+): ?([^\n]*)\n", r"\n\n\1\n\n", text)  # headwords
    yield text.split("\n\n")


SOURCES = {"r-cran-janeaustenr": austen, "sword-text-web": bible, "sqlite3-doc": sqlite, "jargon-text": jargon}
COARSE = re.compile(r"\b(fuck|shit|cunt|nigger|bitch|rape[ds]?\b|penis|vagina|whore)", re.I)


def clean(paragraph):
    """The paragraph on one line, or nothing if it is no prose."""
    text = " ".join(paragraph.translate(QUOTES).split())
    letters = sum(c.isalpha() or c == " " for c in text)
    words = text.count(" ") + 1
    prose = len(text) >= 60 and letters >= 0.88 * len(text) and words >= 10 and text[-1] in ".!?:;,'\")—"
    return text if prose and not COARSE.search(text) else None


def documents(works, seen):
    """Joins paragraphs of a work, in order, to documents; `seen` holds every paragraph so far."""
    for work in works:
        gathered, size = [], 0
        for paragraph in map(clean, work):
            if paragraph is None or paragraph in seen:
                continue
            seen.add(paragraph)
            gathered.append(paragraph)
            size += len(paragraph)
            if size >= DOCUMENT:
                yield "\n\n".join(gathered)
                gathered, size = [], 0
        if size >= DOCUMENT // 6:
            yield "\n\n".join(gathered)


def main():
    unpacked, out = sys.argv[1:]
    seen, lines = set(), []
    for package, read in SOURCES.items():
        texts = list(documents(read(f"{unpacked}/{package}"), seen))
        size = sum(len(text.encode()) for text in texts)
        print(f"{package}: {len(texts)} documents, {size} bytes", file=sys.stderr)
        lines += [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
    with open(out, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    print(f"{out}: {len(lines)} documents", file=sys.stderr)


main()

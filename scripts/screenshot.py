"""A terminal's screen as a small SVG picture: what made those in data/screenshots.

    tmux capture-pane -e -p -t SESSION | python3 scripts/screenshot.py > screenshot.svg

Reads text with ANSI colours (SGR 0, 1, 2, 30 to 37, 39, 90 to 97) from stdin. Python's standard library is all it needs.
"""

import html
import re
import sys
import unicodedata

COLUMN, ROW, MARGIN = 8.4, 19, 14
COLOURS = ["#6b7280", "#f87171", "#86d992", "#f2cc60", "#79b8ff", "#d2a8ff", "#76d7e0", "#e6edf3"]


def runs(line):
    """(text, colour, bold) of each stretch of one look."""
    colour, bold = COLOURS[7], False
    for code, text in re.findall(r"(?:\x1b\[([0-9;]*)m)?([^\x1b]*)", line):
        for part in filter(None, code.split(";")) if code else []:
            number = int(part)
            if number == 0:
                colour, bold = COLOURS[7], False
            elif number == 1:
                bold = True
            elif number == 39:
                colour = COLOURS[7]
            elif 30 <= number <= 37 or 90 <= number <= 97:
                colour = COLOURS[number % 10]
        if text:
            yield text, colour, bold


def width(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def main():
    lines = [re.sub(r"\x1b\[m", "\x1b[0m", line.rstrip()) for line in sys.stdin.read().rstrip().split("\n")]
    widest = max(width(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines)
    wide, high = widest * COLUMN + 2 * MARGIN, len(lines) * ROW + 2 * MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high}" viewBox="0 0 {wide:.0f} {high}">')
    print('<rect width="100%" height="100%" rx="8" fill="#161b22"/>')
    print('<g font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="14">')
    for row, line in enumerate(lines):
        column = 0
        for text, colour, bold in runs(line):
            columns = width(text)
            # Browsers join blanks unless they are the kind that does not break.
            text = html.escape(text).replace(" ", "\u00a0")
            weight = ' font-weight="bold"' if bold else ""
            # Each stretch is fitted to its columns, so that any monospaced font will do.
            x, y, length = MARGIN + column * COLUMN, MARGIN + row * ROW + 14, columns * COLUMN
            print(f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" fill="{colour}"{weight}>{text}</text>')
            column += columns
    print("</g>\n</svg>")


main()

"""The text of an HTML page, block by block: what scripts/quickstart_text.py and scripts/italian_manuals.py read pages with.

Python's standard library is all it needs.
"""

import html.parser


class Paragraphs(html.parser.HTMLParser):
    """Collects `blocks`, without code, tables, menus and scripts. A subclass may choose other tags."""

    BLOCKS = {"p", "li", "dd", "dt", "h1", "h2", "h3", "h4", "blockquote", "div", "ul", "ol", "dl", "br", "body"}
    SILENT = {"script", "style", "pre", "table", "head", "form", "svg", "button", "nav"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.silent = [""], []

    def handle_starttag(self, tag, attributes):
        if tag in self.SILENT:
            self.silent.append(tag)
        elif tag in self.BLOCKS:
            self.blocks.append("")

    def handle_endtag(self, tag):
        if self.silent and self.silent[-1] == tag:
            self.silent.pop()
        if tag in self.BLOCKS or tag in self.SILENT:
            self.blocks.append("")

    def handle_data(self, data):
        if not self.silent:
            self.blocks[-1] += data


def blocks_of(path, parser=Paragraphs):
    """The blocks of the page at `path`."""
    with open(path, encoding="utf-8", errors="replace") as file:
        page = parser()
        page.feed(file.read())
    return page.blocks

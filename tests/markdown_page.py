"""What a Markdown page comes to once it is HTML, as tests look at it."""

from __future__ import annotations

from html.parser import HTMLParser

from markdown_it import MarkdownIt


class MarkdownPage(HTMLParser):
    """The tags, attributes and text that a Markdown page comes to."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.structure: list[str] = []
        self.cells: list[str] = []
        self.depth: list[str] = []
        self.in_prose = ""
        html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.structure.append(tag)
        if tag == "td":
            self.cells.append("")
        self.attributes.update(attrs)
        self.depth.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.depth and self.depth.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.depth:
            self.cells[-1] += data
        if not {"code", "pre"} & set(self.depth):
            self.in_prose += data

    def handle_comment(self, data: str) -> None:
        self.tags.add("!--")

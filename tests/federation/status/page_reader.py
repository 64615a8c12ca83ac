"""Reads a page as a browser's parser would: its words, its tags, and whatever it would fetch or run."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "img", "line", "polyline", "circle", "br")
FETCHING = ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href")
RUNNING = ("script", "iframe", "object", "embed", "link", "base", "form", "a", "img", "foreignobject")


class PageReader(HTMLParser):
    """What is in a page; ``text`` is what a reader sees."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.refresh = ""
        self.unclosed: list[str] = []
        self.feed(document)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.unclosed.append(tag)
        values = {name: value or "" for name, value in attributes}
        self.fetched += [value for name, value in values.items() if name in FETCHING]
        self.handlers += [name for name in values if name.startswith("on")]
        if values.get("http-equiv") == "refresh":
            self.refresh = values["content"]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.unclosed.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:  # a browser that prints its DOM closes what SVG leaves empty
            assert self.unclosed.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.unclosed and self.unclosed[-1] not in ("style", "title"):
            self.words.append(data)


def is_harmless(document: str) -> bool:
    """Whether a page fetches nothing, runs nothing, and closes what it opens."""
    page = PageReader(document)
    return not (page.fetched or page.handlers or page.unclosed or set(page.tags) & set(RUNNING))

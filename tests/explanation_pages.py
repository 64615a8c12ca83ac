"""Writes what `instahide explain` says into the pages that quote it.

    python -m tests.explanation_pages

A page quotes a topic between ``<!-- explain: TOPIC -->`` and ``<!-- end of explain -->``; what lies between
is written anew. ``tests/federation/test_explanations.py`` fails while a page and the source differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from federation.explanation_text import as_markdown
from federation.explanations import explain

ROOT = Path(__file__).resolve().parents[1]
QUOTE = re.compile(
    r"(?P<head>^<!-- explain: (?P<topic>[\w-]+) -->\n).*?(?P<tail>^<!-- end of explain -->$)",
    re.MULTILINE | re.DOTALL,
)


def pages() -> list[Path]:
    """Every Markdown page of the repository that quotes an explanation."""
    rooms = ("deploy", "federation", "instahide")
    found = [*ROOT.glob("*.md"), *(page for room in rooms for page in (ROOT / room).rglob("*.md"))]
    return sorted(page for page in found if QUOTE.search(page.read_text(encoding="utf-8")))


def quoted_anew(text: str) -> str:
    """``text`` with every quotation as the source has it now."""
    return QUOTE.sub(lambda m: f"{m['head']}\n{as_markdown(explain(m['topic']))}\n\n{m['tail']}", text)


def main() -> None:
    """Write every page anew that differs."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := quoted_anew(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()

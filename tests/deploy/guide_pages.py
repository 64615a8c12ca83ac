"""The guides as their readers have them: their blocks in order, and the printed page.

A guide is one Markdown file of ``deploy/guides``. Its ``bash`` blocks are commands for whoever holds the
role, run by ``test_guides_followed.py``; its ``sh`` blocks are for root on a machine with systemd, and are
only looked at.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .deploy_files import DEPLOY

FOLDER = DEPLOY / "guides"
ROLES = ("hospital-it", "coordinator", "data-scientist", "privacy-officer")
STYLE = """
@page { size: A4; margin: 14mm 15mm }
body { font: 9.5pt/1.28 "Liberation Sans", Arial, sans-serif }
h1 { font-size: 15pt; margin: 0 0 4pt } h2, h3 { font-size: 11pt; margin: 6pt 0 3pt }
p, ul, pre, table { margin: 0 0 4.5pt } ul { padding-left: 14pt }
pre { background: #f2f2f2; padding: 2.5pt 4pt; white-space: pre-wrap; font-size: 8.3pt; line-height: 1.2 }
code { font-family: "Liberation Mono", monospace; font-size: 8.3pt }
table { border-collapse: collapse; font-size: 9pt }
td, th { border: 0.5pt solid #999; padding: 1pt 4pt; text-align: left }
thead:not(:has(th:not(:empty))) { display: none }
"""


def text_of(role: str) -> str:
    """The guide's Markdown."""
    return (FOLDER / f"{role}.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Its code blocks of one language, in the order written."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The lines of a block that are commands."""
    return [line for line in block.splitlines() if line.strip() and not line.startswith("#")]


def as_html(text: str) -> str:
    """The page as it is printed: A4, in a type that can be read."""
    from markdown_it import MarkdownIt

    body = (
        MarkdownIt("commonmark").enable("table").render(re.sub(r"^<!--.*-->$", "", text, flags=re.MULTILINE))
    )
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{body}'


def print_to_pdf(text: str, browser: str, pdf: Path) -> int:
    """Print the page into ``pdf`` with a real browser; the number of pages."""
    html = pdf.with_suffix(".html")
    html.write_text(as_html(text), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={pdf.parent / 'profile'}",
    ]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={pdf}", html.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))


if __name__ == "__main__":  # python -m tests.deploy.guide_pages FOLDER: to look at them
    out = Path(sys.argv[1]).resolve()
    for one in ROLES:
        print(one, print_to_pdf(text_of(one), "chromium", out / f"{one}.pdf"), "pages")

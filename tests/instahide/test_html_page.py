"""Report pages: self-contained, escaped, and honest about what was not measured."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from instahide.html_page import heading, line_chart, page, paragraph, picture_grid, pictures, table


class Balance(HTMLParser):
    """Counts tags that were opened and not closed, and collects what a page would fetch."""

    VOID = ("meta", "img", "line", "polyline", "circle", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def whole_page() -> str:
    images = np.zeros((3, 1, 4, 4), dtype=np.uint8)
    return page(
        "A <title>",
        heading("Part & parcel"),
        paragraph("Run `instahide demo` <now>", kind="warning"),
        table(["name", "value"], [["a<b", 0.12345], ["count", 1234], ["later", None]]),
        line_chart({"one": [(0, 0.1), (1, math.nan), (2, 0.9)]}, x_label="x", y_label="y", caption="c"),
        pictures([(picture_grid(images, columns=2), "zeros")]),
    )


def test_every_tag_is_closed_and_nothing_is_fetched() -> None:
    balance = Balance()
    balance.feed(whole_page())
    assert balance.open == []
    assert len(balance.sources) == 1
    assert all(source.startswith("data:image/png;base64,") for source in balance.sources)


def test_text_is_escaped_and_backticks_become_code() -> None:
    document = whole_page()
    assert "<now>" not in document
    assert "A &lt;title&gt;" in document
    assert "<code>instahide demo</code>" in document


def test_what_was_not_measured_says_so_and_a_point_that_is_no_number_is_left_out() -> None:
    document = whole_page()
    assert "not measured" in document
    assert document.count("<circle") == 2
    assert "0.123" in document
    assert "1,234" in document


def test_a_chart_without_a_point_says_so() -> None:
    assert "nothing was measured" in line_chart({"one": []}, x_label="x", y_label="y", caption="c")


def test_points_lie_where_their_values_are() -> None:
    # Axis range 0..1 on y=280..16: 0.5 is half way, at 148.
    chart = line_chart(
        {"one": [(0, 0.0), (1, 0.5), (2, 1.0)]}, x_label="x", y_label="y", caption="c", y_range=(0.0, 1.0)
    )
    assert 'points="72.0,280.0 386.0,148.0 700.0,16.0"' in chart


def test_a_grid_shows_each_image_at_its_place() -> None:
    images = np.stack([np.full((1, 2, 2), value, dtype=np.uint8) for value in (0, 100, 255)])
    sheet = np.asarray(Image.open(io.BytesIO(picture_grid(images, columns=2, scale=3, gap=1))))
    assert sheet.shape == (15, 15, 3)  # two rows and columns of 2*3 + 1, and the last gap
    assert sheet[2, 2, 0] == 0
    assert sheet[2, 9, 0] == 100
    assert sheet[9, 2, 0] == 255
    assert sheet[9, 9, 0] == 127  # empty cell: grey

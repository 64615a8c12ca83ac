"""Self-contained report pages: one HTML file, no script, no font and no picture from elsewhere.

A page must open from a USB stick on a machine without a network, read well on a telephone, on
a desk and on paper, and say the same in words as in pictures. So: charts are inline SVG,
pictures are data URIs, and every chart carries its numbers in a table beneath it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito (2008): told apart by readers with any common colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
LABEL_WIDTH = 44.0
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4", "")

STYLE = """
:root{--ink:#1b1f24;--soft:#5b6570;--line:#d9dee4;--paper:#fff;--tint:#f5f7f9;--warn:#8a3b00;--warnbg:#fff4e8}
@media (prefers-color-scheme:dark){:root{--ink:#e7eaee;--soft:#a2acb8;--line:#39424d;--paper:#15191e;
--tint:#1d232a;--warn:#ffb877;--warnbg:#33220f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem}
p,ul{max-width:44rem}.soft{color:var(--soft)}
.warning{background:var(--warnbg);color:var(--warn);border-left:4px solid currentColor;
padding:.7rem 1rem;border-radius:4px}
.scroll{overflow-x:auto}table{border-collapse:collapse;margin:.6rem 0;font-size:.93rem}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
figure{margin:1rem 0}figcaption{color:var(--soft);font-size:.9rem;max-width:44rem}
svg{width:100%;max-width:46rem;height:auto;background:var(--tint);border-radius:6px}
svg text{fill:var(--ink);font-size:13px}svg .grid{stroke:var(--line)}
.pictures{display:flex;flex-wrap:wrap;gap:1rem}.pictures img{width:100%;max-width:26rem;
image-rendering:pixelated;
border:1px solid var(--line);background:#888}
.drawing img{width:100%;max-width:56rem;background:#fff;border:1px solid var(--line)}
pre{font-size:.88rem;white-space:pre-wrap}
code{background:var(--tint);padding:.1rem .3rem;border-radius:3px;font-size:.92em;overflow-wrap:anywhere}
@page{margin:14mm}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--tint:#f5f7f9;--warn:#6b2d00;
--warnbg:#fff4e8}
body{font-size:10pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}main{max-width:none;padding:0}
p,ul,figcaption{max-width:none}h2,h3{break-after:avoid}.scroll{overflow:visible}
table{font-size:8.5pt}th,td{padding:.2rem .6rem .2rem 0}
figure,tr,.warning{break-inside:avoid}p,li{orphans:3;widows:3}svg{max-width:34rem}}
"""


def page(title: str, *parts: str, refresh_seconds: int | None = None) -> str:
    """A whole HTML document; ``parts`` are HTML fragments from the functions below.

    ``refresh_seconds``: a browser that shows it reads the file again that often.
    """
    again = f'<meta http-equiv="refresh" content="{refresh_seconds}">\n' if refresh_seconds else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"{again}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph; ``kind`` is "", "soft" or "warning". Text between backticks becomes code."""
    pieces = escape(text).split("`")
    body = "".join(piece if i % 2 == 0 else f"<code>{piece}</code>" for i, piece in enumerate(pieces))
    return f'<p class="{kind}">{body}</p>' if kind else f"<p>{body}</p>"


def printed(lines: Sequence[str]) -> str:
    """Lines as a terminal shows them, columns kept; long ones are wrapped."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    """A table; numbers right-aligned, floats with three digits or so, ``None`` as "not measured"."""
    kinds = [all(isinstance(row[j], (int, float)) for row in rows) for j in range(len(columns))]
    head = "".join(
        f'<th class="number">{escape(column)}</th>' if rows and number else f"<th>{escape(column)}</th>"
        for column, number in zip(columns, kinds, strict=True)
    )
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return '<td class="soft">not measured</td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{_in_digits(value)}</td>'


def _in_digits(value: float | int) -> str:
    """Three decimals; small ones by powers of ten, large and whole ones without a fraction."""
    if isinstance(value, int) or (abs(value) >= 10 and value.is_integer()):
        return f"{int(value):,}"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.3f}"


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    caption: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Lines with markers over a common x axis; points that are not finite are left out.

    Colour and dash differ between lines, so the chart survives a grey printer. On a logarithmic axis
    (``log_x``, ``log_y``) values that are not positive are left out too.
    """
    points = {
        name: [
            (math.log10(x) if log_x else x, math.log10(y) if log_y else y)
            for x, y in line
            if math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) and (y > 0 or not log_y)
        ]
        for name, line in series.items()
    }
    flat = [point for line in points.values() for point in line]
    if not flat:
        return paragraph(f"{caption} (nothing was measured)", kind="soft")
    xs, ys = [x for x, _ in flat], [y for _, y in flat]
    low, high = y_range or (min(ys), max(ys))
    if low == high:
        low, high = low - 0.5, high + 0.5
    left, right, top, bottom = 72.0, 700.0, 16.0, 280.0
    x_span = (max(xs) - min(xs)) or 1.0
    y_span = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - min(xs)) / x_span * (right - left),
            bottom - (y - low) / y_span * (bottom - top),
        )

    ticks = list(range(math.floor(min(xs)), math.ceil(max(xs)) + 1)) if log_x else sorted(set(xs))
    ticks = [tick for tick in ticks if min(xs) <= tick <= max(xs)] or [min(xs), max(xs)]
    drawn = _axes(left, right, top, bottom, low, high, ticks, place, x_label, y_label, log_x, log_y)
    for index, (name, line) in enumerate(points.items()):
        drawn.append(_one_line([place(x, y) for x, y in line], name, index))
    height = int(bottom + 52 + 20 * math.ceil(len(points) / 2))
    drawn.extend(_legend(list(points), bottom + 56))
    body = "".join(drawn)
    return (
        f'<figure><svg viewBox="0 0 720 {height}" role="img" aria-label="{escape(caption)}">{body}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def scatter_chart(
    points: Mapping[str, tuple[float, float]], *, x_label: str, y_label: str, caption: str
) -> str:
    """Numbered points in the unit square; the numbers are explained in a list below the picture."""
    left, right, top, bottom = 56.0, 700.0, 16.0, 380.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (right - left), bottom - y * (bottom - top)

    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    drawn = _axes(left, right, top, bottom, 0.0, 1.0, ticks, place, x_label, y_label, False, False)
    for number, (name, (x, y)) in enumerate(points.items(), start=1):
        at_x, at_y = place(min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))
        colour = PALETTE[(number - 1) % len(PALETTE)]
        drawn.append(
            f"<g><title>{escape(name)}: {x:.3f}, {y:.3f}</title>"
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="{colour}"/>'
            f'<text x="{at_x + 7:.1f}" y="{at_y - 5:.1f}">{number}</text></g>'
        )
    names = "; ".join(f"{number} {name}" for number, name in enumerate(points, start=1))
    return (
        f'<figure><svg viewBox="0 0 720 430" role="img" aria-label="{escape(caption)}">{"".join(drawn)}</svg>'
        f"<figcaption>{escape(caption)} {escape(names)}.</figcaption></figure>"
    )


def _axes(  # type: ignore[no-untyped-def]
    left, right, top, bottom, low, high, xs, place, x_label, y_label, log_x, log_y
) -> list[str]:
    drawn = []
    for step in range(5):
        value = low + (high - low) * step / 4
        _, y = place(xs[0], value)
        drawn.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        shown = 10**value if log_y else value
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{shown:.2g}</text>')
    free = -math.inf  # where the last label ends
    for x in xs[:: max(1, math.ceil(len(xs) / 12))]:
        middle = place(x, low)[0]
        if middle < free:
            continue
        free = middle + LABEL_WIDTH
        shown = 10**x if log_x else x
        drawn.append(f'<text x="{middle:.1f}" y="{bottom + 18}" text-anchor="middle">{shown:.3g}</text>')
    drawn.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>'
    )
    drawn.append(
        f'<text x="14" y="{(top + bottom) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(top + bottom) / 2})">{escape(y_label)}</text>'
    )
    return drawn


def _one_line(places: Sequence[tuple[float, float]], name: str, index: int) -> str:
    colour, dash = PALETTE[index % len(PALETTE)], DASHES[index % len(DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"/>' for x, y in places)
    return (
        f'<g><title>{escape(name)}</title><polyline points="{path}" fill="none" stroke="{colour}" '
        f'stroke-width="2.2" stroke-dasharray="{dash}"/>{dots}</g>'
    )


def _legend(names: Sequence[str], top: float) -> list[str]:
    drawn = []
    for index, name in enumerate(names):
        x, y = 60 + 330 * (index % 2), top + 20 * (index // 2)
        colour, dash = PALETTE[index % len(PALETTE)], DASHES[index % len(DASHES)]
        drawn.append(
            f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="2.2" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 34}" y="{y}">{escape(name)}</text>'
        )
    return drawn


def picture_grid(images: NDArray[np.uint8], *, columns: int, scale: int = 1, gap: int = 2) -> bytes:
    """PNG of (N, C, H, W) 8-bit images laid out in rows of ``columns``, each pixel ``scale`` wide."""
    from PIL import Image

    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    sheet = np.full((rows * cell_h + gap, columns * cell_w + gap, 3), 127, dtype=np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        colour = np.broadcast_to(image, (3, height, width)) if channels == 1 else image
        big = colour.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        y, x = gap + row * cell_h, gap + column * cell_w
        sheet[y : y + height * scale, x : x + width * scale] = big
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def drawing(png: bytes, caption: str) -> str:
    """A plot as a PNG, as wide as the page, with its caption."""
    source = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="drawing"><img src="data:image/png;base64,{source}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def pictures(items: Sequence[tuple[bytes, str]]) -> str:
    """PNG pictures side by side (stacked on a telephone), each with its caption."""
    drawn = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for png, caption in items
    )
    return f'<div class="pictures">{drawn}</div>'

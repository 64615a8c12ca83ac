"""What both status pages share: how old the page is, times in words, curves with few points, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from instahide.html_page import line_chart, paragraph, table

from .run_progress import Trouble, parse_time

REFRESH_SECONDS: Final = 30
"""A browser reads the page again that often."""
REWRITE_SECONDS: Final = 60
"""The writer writes it anew at least that often while it is up."""
STALE_SECONDS: Final = 2 * REWRITE_SECONDS
MOST_POINTS: Final = 200
MOST_ROWS: Final = 12

Cell = str | float | int | None


def moment_in_words(moment: datetime) -> str:
    """``2026-11-26 08:30:00 UTC``."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def time_in_words(stamp: str, now: datetime) -> str:
    """An event's time of ``now``'s day, else its date, and how long ago that was; "" for none."""
    moment = parse_time(stamp)
    if moment is None:
        return ""
    shown = f"{moment:%H:%M:%S}" if moment.date() == now.date() else f"{moment:%Y-%m-%d}"
    return f"{shown}, {ago(moment, now)}".replace(" ", "\u00a0")


def outside(text: str) -> str:
    """Words of others within a paragraph of ours: their backticks are not our markup."""
    return text.replace("`", "'")


def ago(moment: datetime, now: datetime) -> str:
    """Seconds, minutes, hours or days, in words."""
    seconds = int((now - moment).total_seconds())
    if seconds < 0:
        return "in the future by this machine's clock"
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {word} ago"
    return f"{seconds} s ago"


def age_of_the_page(now: datetime, writer: str) -> str:
    """How to tell whether the page is stale: it cannot know the time at which it is read."""
    return paragraph(
        f"Written on {moment_in_words(now)}. While {writer} is up, this page is written anew after each "
        f"event and at least every {REWRITE_SECONDS} s: if it is more than {STALE_SECONDS // 60} minutes "
        f"old by your clock, {writer} is down and everything below is of that time.",
        kind="soft",
    )


def days_in_words(days: int | None) -> str:
    """What is left of a certificate."""
    if days is None:
        return "cannot be read"
    return f"{days} days left" if days >= 0 else "has ended"


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[float, float]]:
    """At most so many of them, evenly, first and last among them."""
    if len(points) > most:
        last = len(points) - 1
        points = [points[round(index * last / (most - 1))] for index in range(most)]
    return [(float(x), float(y)) for x, y in points]


def curve_over_rounds(
    curves: Mapping[str, Sequence[tuple[int, float]]], *, y_label: str, caption: str
) -> list[str]:
    """A chart and its numbers in a table; [] without a point."""
    kept = {name: points for name, points in curves.items() if points}
    if not kept:
        return []
    chart = line_chart(
        {name: thinned(points, MOST_POINTS) for name, points in kept.items()},
        x_label="round",
        y_label=y_label,
        caption=caption,
    )
    by_round = {name: dict(points) for name, points in kept.items()}
    rounds = sorted(set().union(*by_round.values()))
    shown = [int(number) for number, _ in thinned([(number, 0.0) for number in rounds], MOST_ROWS)]
    rows: list[list[Cell]] = [
        [number, *(points.get(number) for points in by_round.values())] for number in shown
    ]
    return [chart, table(["after round", *kept], rows)]


def table_of_troubles(troubles: Sequence[Trouble], now: datetime, *, with_site: bool = True) -> str:
    """A row each, in the order given."""
    columns = ["time (UTC)", "run", *(["hospital"] if with_site else []), "what", "reason"]
    return table(columns, [_trouble(trouble, now, with_site) for trouble in troubles])


def _trouble(trouble: Trouble, now: datetime, with_site: bool) -> list[Cell]:
    what = f"{trouble.what} ({trouble.kind})" if trouble.kind else trouble.what
    reason = trouble.reason + (f". What to do: {trouble.hint}" if trouble.hint else "")
    where = f"{trouble.run}, round {trouble.round}" if trouble.round else trouble.run
    site = [trouble.site or "–"] if with_site else []
    return [time_in_words(trouble.time, now), where, *site, what, reason]

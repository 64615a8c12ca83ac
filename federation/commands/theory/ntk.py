"""``instahide theory ntk``: the published comparison on small tables, run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import OutputFormat, StoppedError, print_json, progress_bar
from .shared import mistakes_in_our_form

if TYPE_CHECKING:
    from theory_modules.uci_metrics import Summary
    from theory_modules.uci_run import Scores

DEFAULT_CLASSIFIERS = "ntk,gaussian,polynomial,random-forest"
ALL_CLASSIFIERS = DEFAULT_CLASSIFIERS + ",network-he,network-ntk"


def ntk(
    uci: Annotated[
        Path, typer.Option(help="Folder with one folder a table.", metavar="DIR", show_default=False)
    ],
    classifiers: Annotated[
        str,
        typer.Option(
            help=f"Some of {ALL_CLASSIFIERS.replace(',', ', ')}, with commas between; or all.",
            metavar="NAMES",
            show_default="the first four",
        ),
    ] = DEFAULT_CLASSIFIERS,
    nested: Annotated[
        bool, typer.Option("--nested", help="Beside it, tune inside each training part only: no leak.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Worker processes, one thread each.",
            show_default="1 where that is quicker, else one for each core",
        ),
    ] = None,
    published_results: Annotated[
        Path | None,
        typer.Option(help="Accuracies of other classifiers, for ranks, P90, P95 and PMA.", metavar="FILE"),
    ] = None,
    network_width: Annotated[int, typer.Option(min=1, help="Hidden width of the networks.")] = 512,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep a results file a table here; what is there is not computed again.", metavar="DIR"
        ),
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="Lines for people, or one JSON object.")] = (
        OutputFormat.text
    ),
) -> None:
    """Neural tangent kernels on small tables, under the published protocol.

    DIR holds tables in the preparation of Fernandez-Delgado et al. (2014):
    NAME/NAME.txt, NAME/NAME_R.dat, NAME/conxuntos.dat and
    NAME/conxuntos_kfold.dat. Tables of more than 5,000 rows or with a test
    file of their own are left out, as published (Arora et al. 2020; 90 remain).

    Every classifier is tuned on the tuning split and scored on the four given
    pairs of training and test rows. The published rule tunes on rows that it
    scores on; --nested measures without that leak, beside it.

    The tangent kernels and the other machines take seconds for a dozen
    tables, forests a few seconds a table, networks ten seconds for 300 rows
    and in proportion to the rows: name them to get them.

    Ranks, P90, P95 and PMA depend on who takes part; with --published-results
    (a line of names, then a line for each data set) all those take part, too.

    Exit codes: 0 done · 2 wrong input · 130 interrupted; --out holds what was done.

    Example:

        instahide theory ntk --uci uci_kfold/ --classifiers ntk --nested --out results/
    """
    with mistakes_in_our_form("`instahide theory ntk --help` shows the folder's form and an example"):
        from theory_modules.uci_contenders import contenders
        from theory_modules.uci_metrics import read_published
        from theory_modules.uci_run import Comparison, compare
        from theory_modules.uci_tables import list_tables

        names = _chosen(classifiers, list(contenders()))
        listing = list_tables(uci)
        others = read_published(published_results) if published_results is not None else {}
        protocols = ("published", "nested") if nested else ("published",)
        comparison = Comparison(names, protocols, {"width": network_width}, out)
        finished = 0
        with progress_bar("tables done:") as progress:
            progress(0, len(listing.tables))

            def on_table(done: int, total: int, name: str) -> None:
                nonlocal finished
                finished = done
                progress(done, total)

            try:
                scores = compare(listing.tables, comparison, processes=processes, on_table=on_table)
            except KeyboardInterrupt:
                raise StoppedError(
                    f"interrupted: {finished} of {len(listing.tables)} tables are done",
                    hint="run it again with the same --out to go on"
                    if out
                    else "with --out results are kept",
                ) from None
    report = _Report(scores, names, others, listing.left_out)
    if format is OutputFormat.json:
        print_json(report.values())
        return
    for line in report.lines():
        typer.echo(line)


def _chosen(words: str, known: list[str]) -> tuple[str, ...]:
    from instahide.errors import InvalidInputError

    names = known if words == "all" else list(dict.fromkeys(word.strip() for word in words.split(",")))
    wrong = [name for name in names if name not in known]
    if wrong:
        raise InvalidInputError(
            f"there is no classifier {wrong[0]!r}", hint=f"--classifiers takes some of {', '.join(known)}"
        )
    return tuple(names)


class _Report:
    """What was found, beside what was published."""

    def __init__(
        self,
        scores: dict[str, dict[str, Scores]],
        names: tuple[str, ...],
        others: dict[str, dict[str, float]],
        left_out: dict[str, str],
    ) -> None:
        from theory_modules.uci_metrics import summarize

        self._scores, self._names, self._left_out = scores, names, left_out
        self._others = others
        self._summaries = {
            protocol: summarize(
                {name: {table: row[name].accuracy for table, row in by_table.items()} for name in names},
                others,
            )
            for protocol, by_table in scores.items()
        }

    def values(self) -> dict[str, Any]:
        from dataclasses import asdict

        from theory_modules.uci_metrics import PUBLISHED, PUBLISHED_ON_TABLE

        return {
            "tables": {
                protocol: {
                    table: {name: asdict(found) for name, found in row.items()}
                    for table, row in by_table.items()
                }
                for protocol, by_table in self._scores.items()
            },
            "summary": {
                protocol: {name: _plain(row) for name, row in rows.items()}
                for protocol, rows in self._summaries.items()
            },
            "published": {name: _plain(row) for name, row in PUBLISHED.items()},
            "published_on_table": PUBLISHED_ON_TABLE,
            "compared_with": sorted(self._others),
            "left_out": self._left_out,
            "cpu_seconds": self._cpu_seconds(),
            "machines_trained_by": _machines(),
        }

    def lines(self) -> list[str]:
        lines = []
        for protocol in self._scores:
            lines += [_TITLES[protocol], "", *self._table(protocol), "", *self._summary(protocol), ""]
        if self._left_out:
            lines.append(f"left out: {', '.join(f'{name} ({why})' for name, why in self._left_out.items())}")
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self._cpu_seconds().items())
        path = "loops in C" if _machines() == "c" else "libsvm (no compiled loops here: slower)"
        return [*lines, f"processor seconds: {seconds}; machines trained by {path}"]

    def _table(self, protocol: str) -> list[str]:
        from theory_modules.uci_metrics import PUBLISHED_ON_TABLE

        by_table = self._scores[protocol]

        width = max(len(table) for table in by_table)
        head = " ".join(f"{name:>14s}" for name in self._names)
        lines = [f"{'accuracy, %':{width}s} {head}" + ("   ntk chose" if "ntk" in self._names else "")]
        for table, row in by_table.items():
            cells = " ".join(f"{row[name].accuracy:14.2f}" for name in self._names)
            lines.append(f"{table:{width}s} {cells}   {_choices(row)}".rstrip())
            there = PUBLISHED_ON_TABLE.get(table, {}) if protocol == "published" else {}
            if any(name in there for name in self._names):
                cells = " ".join(
                    f"{there[name]:14.1f}" if name in there else " " * 14 for name in self._names
                )
                lines.append(f"{'  published':{width}s} {cells}".rstrip())
        return lines

    def _summary(self, protocol: str) -> list[str]:
        from theory_modules.uci_metrics import PUBLISHED

        lines = [f"{'':24s} tables    rank     mean ± sd       P90     P95     PMA ± sd"]
        for name, row in self._summaries[protocol].items():
            lines.append(f"{name:24s} {_cells(row)}")
            if protocol == "published" and name in PUBLISHED:
                lines.append(f"{'  published':24s} {_cells(PUBLISHED[name])}")
        pool = f"{len(self._others)} other classifiers and " if self._others else ""
        lines.append(f"rank, P90, P95 and PMA: among {pool}the {len(self._names)} measured here")
        return lines

    def _cpu_seconds(self) -> dict[str, float]:
        rows = [row for by_table in self._scores.values() for row in by_table.values()]
        return {name: sum(row[name].cpu_seconds for row in rows) for name in self._names}


_TITLES = {
    "published": "Published protocol: tuned on the tuning split, which overlaps the test rows",
    "nested": "Nested: tuned inside each training part; no test row is seen before its score",
}


def _machines() -> str:
    from theory_modules.svm_grid import active_path

    return active_path()


def _cells(row: Summary) -> str:
    return (
        (
            f"{row.tables:6d} {row.rank:7.2f} {row.mean:8.2f} ±{row.deviation:6.2f} "
            f"{row.p90:7.2f} {row.p95:7.2f} {row.pma:8.2f} ±{row.pma_deviation:5.2f}"
        )
        .replace("±   nan", "       ")
        .replace("±  nan", "      ")
    )


def _choices(row: Scores) -> str:
    if "ntk" not in row:
        return ""
    words = [f"L={depth:g} L'={fixed:g} C={penalty:g}" for depth, fixed, penalty in row["ntk"].settings]
    return " | ".join(dict.fromkeys(words))


def _plain(row: Summary) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: None if value != value else value for key, value in asdict(row).items()}

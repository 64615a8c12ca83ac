"""The comparison over a folder of tables: in processes, with a results file a table, resumed after a stop.

A results file holds one JSON object: the SHA-256 of the table's files, and the score for each protocol and
classifier. It is written under another name and renamed, so that one that is there is whole; one made from
other table files, or in another format, is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import psutil
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from .uci_contenders import contenders
from .uci_protocol import TableScore, score
from .uci_tables import UciTableError, number_of_rows, read_table

FORMAT = 1
_KERNELS_AT_ONCE = 4
_SHARE_OF_MEMORY = 0.8
_ROWS_FOR_WORKERS = 10_000
_QUICK = {"ntk", "gaussian", "polynomial"}

Scores = dict[str, TableScore]
"""Classifier → score on one table, of one protocol."""


@dataclass(frozen=True)
class Comparison:
    """Names of classifiers and protocols, options of the networks, and the folder for results."""

    classifiers: tuple[str, ...]
    protocols: tuple[str, ...]
    options: dict[str, Any]
    results: Path | None

    def wanted(self) -> list[tuple[str, str]]:
        return [(protocol, name) for protocol in self.protocols for name in self.classifiers]


def compare(
    tables: Sequence[Path],
    comparison: Comparison,
    *,
    processes: int | None = 1,
    on_table: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> dict[str, dict[str, Scores]]:
    """Protocol → table → classifier → score. The largest tables go first.

    Args:
        processes: worker processes, one thread each; 1 works in this process; None is one for each core where
            there is enough to do for starting them.
        on_table: told (done, total, name) when a table is finished.

    Raises:
        UciTableError: too little memory for the kernels of the largest tables, or a damaged table.
    """
    ordered = sorted(tables, key=number_of_rows, reverse=True)
    if processes is None:
        processes = sensible_processes(ordered, comparison.classifiers)
    check_memory(ordered, processes)
    if comparison.results is not None:
        comparison.results.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Scores]] = {protocol: {} for protocol in comparison.protocols}

    def keep(path: Path, scores: dict[str, Scores]) -> None:
        for protocol, by_classifier in scores.items():
            found[protocol][path.name] = by_classifier
        on_table(len(found[comparison.protocols[0]]), len(ordered), path.name)

    if processes == 1:
        for path in ordered:
            keep(path, score_table(path, comparison))
    else:
        _in_processes(ordered, comparison, processes, keep)
    return {protocol: dict(sorted(by_table.items())) for protocol, by_table in found.items()}


def sensible_processes(tables: Sequence[Path], classifiers: Sequence[str]) -> int:
    """A worker takes seconds to start: 1 for machines on a few thousand rows, else one for each core."""
    small = sum(map(number_of_rows, tables)) <= _ROWS_FOR_WORKERS and set(classifiers) <= _QUICK
    return 1 if small else max(1, min(len(tables), psutil.cpu_count() or 1))


def check_memory(ordered: Sequence[Path], processes: int) -> None:
    """Kernels of training half × all rows, and copies of parts, for the largest tables that run at once."""
    needed = sum(8 * _KERNELS_AT_ONCE * number_of_rows(path) ** 2 // 2 for path in ordered[:processes])
    free = psutil.virtual_memory().available
    if needed > _SHARE_OF_MEMORY * free:
        raise UciTableError(
            f"the kernels of {min(processes, len(ordered))} tables of up to "
            f"{number_of_rows(ordered[0])} rows take {needed / 1e9:.1f} GB "
            f"and {free / 1e9:.1f} GB of memory are free\n"
            "hint: use fewer processes, or leave out the largest tables"
        )


def score_table(path: Path, comparison: Comparison) -> dict[str, Scores]:
    """Protocol → classifier → score, from the results file where it has them; it is rewritten after each."""
    listed = contenders(**comparison.options)
    digest = table_digest(path)
    file = comparison.results / f"{path.name}.json" if comparison.results is not None else None
    kept = _read_results(file, digest)
    table = None
    with threadpool_limits(limits=1):
        for protocol, name in comparison.wanted():
            key = _key(protocol, name, comparison.options)
            if key in kept:
                continue
            table = table or read_table(path)
            kept[key] = _as_json(score(table, listed[name], protocol=protocol))
            _write_results(file, digest, kept)
    return {
        protocol: {
            name: _from_json(kept[_key(protocol, name, comparison.options)])
            for name in comparison.classifiers
        }
        for protocol in comparison.protocols
    }


def table_digest(path: Path) -> str:
    """SHA-256 over the table's files, names and contents."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".txt", ".dat"):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _in_processes(
    ordered: Sequence[Path],
    comparison: Comparison,
    processes: int,
    keep: Callable[[Path, dict[str, Scores]], None],
) -> None:
    # A fresh interpreter: forking one whose libraries have started threads can hang.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        waiting: dict[Future[dict[str, Scores]], Path] = {
            pool.submit(score_table, path, comparison): path for path in ordered
        }
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                keep(waiting.pop(future), future.result())
    except BaseException:
        workers = list((pool._processes or {}).values())
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
            _remove_unfinished(comparison.results, worker.pid)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _remove_unfinished(folder: Path | None, pid: int | None) -> None:
    """What a terminated worker was writing."""
    for path in folder.glob(f".*.json.{pid}") if folder is not None else ():
        path.unlink(missing_ok=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent; end with it, also where it was killed and could end nobody."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
    import torch

    torch.set_num_threads(1)


def _key(protocol: str, name: str, options: dict[str, Any]) -> str:
    suffix = (
        "".join(f" {key}={options[key]}" for key in sorted(options)) if name.startswith("network") else ""
    )
    return f"{protocol} {name}{suffix}"


def _as_json(found: TableScore) -> dict[str, Any]:
    return asdict(found)


def _from_json(values: dict[str, Any]) -> TableScore:
    return TableScore(
        accuracy=float(values["accuracy"]),
        fold_accuracies=tuple(values["fold_accuracies"]),
        settings=tuple(tuple(setting) for setting in values["settings"]),
        validation_accuracies=tuple(values["validation_accuracies"]),
        cpu_seconds=float(values["cpu_seconds"]),
    )


def _read_results(file: Path | None, digest: str) -> dict[str, Any]:
    if file is None or not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        usable = stored["format"] == FORMAT and stored["table_sha256"] == digest
        scores = dict(stored["scores"])
    except (ValueError, KeyError, TypeError):
        return {}
    return scores if usable else {}


def _write_results(file: Path | None, digest: str, scores: dict[str, Any]) -> None:
    if file is None:
        return
    text = json.dumps({"format": FORMAT, "table_sha256": digest, "scores": scores}, indent=1)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)

"""All audits of one release, each with its verdict, and the checks that give a verdict its weight.

``leaked`` of a result is True (the weakness is there), False (it was looked for, with the power the check
shows, and is not there), or None (this release cannot tell). A False says nothing about attacks that are
not implementation faults: the scheme itself is broken where an image is released often enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ..view import AttackResult
from .artefacts import audit_artefacts
from .coefficient_reuse import audit_coefficients
from .decoded_signs import bits_from_decoding
from .fixed_pairs import audit_fixed_pairs
from .label_leakage import audit_labels
from .lattice import audit_lattice
from .mask_recovery import KnownBits, audit_mask_generator, background_bits
from .mask_reuse import audit_masks
from .planted_checks import CHECKS, Check
from .public_coverage import audit_public_coverage
from .release import Floats, Release
from .seed_search import audit_seeds
from .self_mixing import audit_self_mixing

Progress = Callable[..., None]


def audit_release(
    encodings: Floats,
    labels: Floats | None,
    law: EncoderConfig,
    artefacts: Iterable[Path] = (),
    *,
    scheme: str = "cross",
    epochs: int = 1,
    in_data_order: bool = True,
    public_pool: NDArray[np.uint8] | None = None,
    pixel_values: NDArray[np.float64] | None = None,
    **options: object,
) -> list[AttackResult]:
    """Run every audit on arrays as released; see :class:`.release.Release` and :func:`audit`.

    Args:
        artefacts: files and folders that are shared beside the encodings.
        options: of :func:`audit`.
    """
    release = Release(encodings, labels, law, scheme, epochs, in_data_order, public_pool, pixel_values)
    return audit(release, artefacts, **options)  # type: ignore[arg-type]


def audit(
    release: Release,
    artefacts: Iterable[Path] = (),
    *,
    known_bits: KnownBits | None = None,
    seed_bits: int = 16,
    max_seconds: float = math.inf,
    with_checks: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[AttackResult]:
    """Every audit of a release, in a fixed order; the artefact scan only if there are artefacts.

    Args:
        known_bits: mask bits known for certain; by default those of a common background or of pixels
            that can be solved for.
        seed_bits: seeds 0 .. 2^seed_bits − 1 are tried.
        max_seconds: processor time of each seed search.
        with_checks: also run each audit on a planted weakness and on a sound release.
        seed: of the auditor's choices of rows and pixels.
    """
    known_bits = known_bits or _certain_bits(release, progress)
    audits: list[Callable[[], AttackResult]] = [
        lambda: audit_seeds(
            release, seed_bits=seed_bits, known=known_bits, max_seconds=max_seconds, progress=progress
        ),
        lambda: audit_mask_generator(release, known=known_bits, progress=progress),
        lambda: audit_masks(release, seed=seed, progress=progress),
        lambda: audit_lattice(release, seed=seed, progress=progress),
        lambda: audit_labels(release),
        lambda: audit_coefficients(release, progress=progress),
        lambda: audit_self_mixing(release, seed=seed, progress=progress),
        lambda: audit_fixed_pairs(release, seed=seed, progress=progress),
        lambda: audit_public_coverage(release, progress=progress),
    ]
    results = [run() for run in audits]
    paths = list(artefacts)
    if paths:
        results.append(audit_artefacts(paths, progress=progress))
    return [with_check(result) for result in results] if with_checks else results


def _certain_bits(release: Release, progress: Progress | None) -> KnownBits:
    """Mask bits of a common background, or of pixels that can be solved for, whichever are more."""
    background, decoded = background_bits(release), bits_from_decoding(release, progress=progress)
    return background if len(background.places) >= len(decoded.places) else decoded


def with_check(result: AttackResult) -> AttackResult:
    """The result with its power and null check, run now on data of the bench's own."""
    check = CHECKS[result.name]
    return replace(result, checks=check.outcomes())


def summary(results: Iterable[AttackResult]) -> AttackResult:
    """One result for all audits: leaked if any leaked; undecided ones are named."""
    all_results = list(results)
    leaking = [result.name for result in all_results if result.leaked]
    undecided = [result.name for result in all_results if result.leaked is None]
    verdict = (
        f"{len(leaking)} of {len(all_results)} audits found a weakness: {', '.join(leaking)}."
        if leaking
        else f"None of {len(all_results)} audits found a weakness."
    )
    if undecided:
        verdict += f" Not decided: {', '.join(undecided)}."
    return AttackResult(
        name="implementation audits",
        verdict=verdict,
        leaked=bool(leaking),
        metrics={
            "audits": float(len(all_results)),
            "weaknesses": float(len(leaking)),
            "undecided": float(len(undecided)),
        },
        intervals={},
        cpu_seconds=sum(result.cpu_seconds for result in all_results),
        wall_seconds=sum(result.wall_seconds for result in all_results),
        peak_bytes=max((result.peak_bytes for result in all_results), default=0),
        assumptions=tuple(dict.fromkeys(line for result in all_results for line in result.assumptions)),
        settings={"verdicts": {result.name: result.verdict for result in all_results}},
        checks=_checks_in_short(all_results),
    )


def _checks_in_short(results: list[AttackResult]) -> dict[str, str]:
    checked = [result for result in results if result.checks]
    if not checked:
        return {}
    blind = [r.name for r in checked if not r.checks["power"].startswith("found")]
    alarms = [r.name for r in checked if not r.checks["null"].startswith("nothing")]
    return {
        "power": f"{len(checked) - len(blind)} of {len(checked)} audits found the weakness planted for them"
        + (f"; BLIND: {', '.join(blind)}" if blind else ""),
        "null": f"{len(checked) - len(alarms)} of {len(checked)} audits passed a sound release"
        + (f"; FALSE ALARM: {', '.join(alarms)}" if alarms else ""),
    }


__all__ = ["Check", "audit", "audit_release", "summary", "with_check"]

"""Public-source identification as an attack: verdict, scores against the truth, checks, cost curve.

Axes: N encodings, m sources sought, q pool images truly inside each, P pool size.

Recall is the share of (encoding, pool image inside) pairs that were named; precision the share of named
pairs that are true. Pairs of one encoding stand and fall together (its signs came out or did not), so
95 % intervals come from resampling encodings, not pairs. A guess without the release names m of P
images: recall m/P.

Two checks come with each run, both on releases the attacker makes from images at hand:

* *power*: a release under the same law, of public images in the place of the private ones; what is found
  there says what "nothing found" would mean;
* *null*: the attacked release is replaced by noise of the same size. Equation (1) of
  :mod:`instahide.attacks.public_sources` promises "nothing" but for a chance of q.

:func:`cost_against_pool_size` measures processor time for growing pools and fits seconds ∝ P^x, to
stand beside the conjectured P^(k/2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import ImageSet
from .cost import Cost
from .public_sources import DEFAULT_RATE, PublicSources, identify_public_sources
from .replica import Replica, make_replica
from .view import AttackerView, AttackResult

NUM_CANARIES = 100
NUM_RESAMPLES = 400
EXACT = 1e-5
"""Root mean square of |e| − |Σ λ_j·x_j| at which a fit proves itself: chance reaches it for no wrong set."""
LEAST_POWER = 0.2
"""Recall on the attacker's own release below which "nothing found" is no evidence."""


def public_source_attack(
    view: AttackerView,
    *,
    truth: NDArray[np.int64] | None = None,
    max_sources: int | None = None,
    false_discovery_rate: float = DEFAULT_RATE,
    with_checks: bool = True,
    pool_sizes: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
) -> tuple[AttackResult, PublicSources]:
    """Identify the sources of every encoding, and say how well it went.

    Args:
        view: with the pool in ``public_pool``, or in ``public_images``.
        truth: (N, q) rows of the pool inside each encoding, for the metrics only.
        with_checks: run the power and null checks, which cost about 200 further encodings.
        pool_sizes: measure cost and recall against P at these sizes, on own releases of 100 encodings.
        seed: of the choice of canaries and of noise.

    Raises:
        InvalidInputError: see :func:`identify_public_sources`; a truth of another length.
    """
    N, pool = len(view.encodings), view.public_pool or view.public_images
    if truth is not None and (truth.ndim != 2 or len(truth) != N):
        raise InvalidInputError(f"truth has shape {truth.shape}, expected ({N}, q)", hint="one row each")
    with Cost() as cost:
        found = identify_public_sources(
            view,
            max_sources=max_sources,
            false_discovery_rate=false_discovery_rate,
            progress=progress,
            max_seconds=max_seconds,
        )
    named = found.rows >= 0
    metrics = {
        "encodings_with_a_source": float(named.any(axis=1).mean()),
        "sources_named_per_encoding": float(named.sum(axis=1).mean()),
        "verified_exactly": float((found.unexplained < EXACT).mean()),
        "seconds_per_encoding": cost.cpu_seconds / N,
    }
    intervals: dict[str, tuple[float, float]] = {}
    baselines: dict[str, float] = {}
    if truth is not None:
        scored, intervals = identification_scores(found, truth, seed=seed)
        metrics |= scored
        baselines = {
            "recall": min(1.0, found.rows.shape[1] / len(pool)),
            "precision": truth.shape[1] / len(pool),
        }
    checks: dict[str, str] = {}
    power = math.nan
    if with_checks:
        power, checks["power"] = power_check(view, false_discovery_rate=false_discovery_rate, seed=seed)
        checks["null"] = null_check(view, false_discovery_rate=false_discovery_rate, seed=seed)
    curves: dict[str, list[tuple[float, float]]] = {}
    if pool_sizes:
        metrics["cost_exponent"], curves = cost_against_pool_size(view, pool_sizes, seed=seed)
        baselines["cost_exponent"] = view.config.num_mixed / 2
    leaked: bool | None = bool(named.any())
    if not leaked and with_checks and not power >= LEAST_POWER:
        leaked = None
    result = AttackResult(
        name="public-source identification",
        verdict=_verdict(leaked, metrics, len(pool)),
        leaked=leaked,
        metrics=metrics,
        intervals=intervals,
        baselines=baselines,
        **cost.figures(),
        seed=seed,
        checks=checks,
        curves=curves,
        curve_axes=("images in the pool", "processor seconds per encoding; recall") if curves else ("", ""),
        assumptions=(
            f"the attacker holds all {len(pool)} images of the pool, exactly as they were mixed",
            f"{len(view.public_images)} public images stand for the statistics of all images",
            "the number of images in an encoding is known; coefficients, partners and sign masks are not",
            "one release of each image is enough; no labels are used",
            "private and public images share one range of values",
        ),
        settings={
            "num_encodings": N,
            "pool_size": len(pool),
            "max_sources": int(found.rows.shape[1]),
            "false_discovery_rate": false_discovery_rate,
            "threshold": found.threshold,
            "num_decoys": found.num_decoys,
            "scheme": view.scheme,
            "config": view.config.to_dict(),
        },
    )
    return result, found


def identification_scores(
    found: PublicSources, truth: NDArray[np.int64], *, seed: int = 0
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Recall, precision, share of encodings with all q sources named; 95 % intervals over encodings.

    Args:
        truth: (N, q) rows of the pool.
    """
    equal = found.rows[:, :, None] == truth[:, None, :]
    hits = equal.any(axis=1).sum(axis=1).astype(float)  # of q
    named, right = (found.rows >= 0).sum(axis=1).astype(float), equal.any(axis=2).sum(axis=1).astype(float)
    complete = hits == truth.shape[1]

    def scores(rows: NDArray[np.int64]) -> dict[str, float]:
        total = named[rows].sum()
        return {
            "recall": float(hits[rows].mean() / truth.shape[1]),
            "precision": float(right[rows].sum() / total) if total else math.nan,
            "all_sources_named": float(complete[rows].mean()),
        }

    generator = np.random.default_rng(seed)
    N = len(truth)
    resampled = [scores(generator.integers(N, size=N)) for _ in range(NUM_RESAMPLES)]
    values = {name: value for name, value in scores(np.arange(N)).items() if math.isfinite(value)}
    limits = {name: np.nanquantile([sample[name] for sample in resampled], [0.025, 0.975]) for name in values}
    return values, {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def power_check(
    view: AttackerView, *, false_discovery_rate: float = DEFAULT_RATE, seed: int = 0
) -> tuple[float, str]:
    """Recall on a release the attacker made: public images hidden among the pool's, same law.

    Returns:
        recall (NaN if there are too few public images for a release), and the sentence for ``checks``.
    """
    made = own_release(view, seed=seed)
    if made is None:
        return math.nan, "not possible: too few public images to make a release of"
    found = identify_public_sources(made.view(), false_discovery_rate=false_discovery_rate)
    recall = identification_scores(found, _sources_in_pool(made))[0]["recall"]
    return recall, (
        f"in {len(found.rows)} encodings the attacker made under the same law, {recall:.0%} of the pool "
        "images mixed in were named"
    )


def null_check(view: AttackerView, *, false_discovery_rate: float = DEFAULT_RATE, seed: int = 0) -> str:
    """What is named in noise of the release's size: independent normal values."""
    generator = torch.Generator().manual_seed(seed)
    count = min(NUM_CANARIES, len(view.encodings))
    scale = view.encodings[:count].square().mean().sqrt()
    noise = scale * torch.randn((count, *view.encodings.shape[1:]), generator=generator)
    blank = AttackerView(noise, None, view.config, view.scheme, view.public_images, view.public_pool)
    found = identify_public_sources(blank, false_discovery_rate=false_discovery_rate)
    named = int((found.rows >= 0).sum())
    return (
        f"in {count} encodings of pure noise {named} images were named; "
        f"any at all has chance {false_discovery_rate:g}"
    )


def own_release(view: AttackerView, *, pool_size: int | None = None, seed: int = 0) -> Replica | None:
    """Up to 100 encodings of public images under the view's law; ``None`` with too few images.

    The cross scheme hides some public images among others of the pool. In the inside scheme all
    sources are the attacker's images.
    """
    pool = view.public_pool or view.public_images
    order = np.random.default_rng(seed).permutation(len(pool))
    count = min(NUM_CANARIES, len(pool) // 3)
    images, k = pool.images[order], view.config.num_mixed
    if count < 2 * k:
        return None
    hidden = ImageSet(images[:count], np.zeros(count, dtype=np.int64))
    if view.scheme == "inside":
        return make_replica(hidden, public=None, config=view.config, releases=1)
    rest = ImageSet(images[count : None if pool_size is None else count + pool_size])
    return make_replica(hidden, public=rest, config=view.config, releases=1)


def cost_against_pool_size(
    view: AttackerView, sizes: Sequence[int], *, seed: int = 0
) -> tuple[float, dict[str, list[tuple[float, float]]]]:
    """How processor time and recall go with P, on releases the attacker makes (cross scheme).

    Returns:
        x of seconds ∝ P^x by least squares in the logarithms, and curves over P: ``measured`` seconds per
        encoding, ``conjectured`` P^(k/2) from the first measured point on, and ``recall``.

    Raises:
        InvalidInputError: fewer than two sizes, or more than the public images can fill.
    """
    pool = view.public_pool or view.public_images
    sizes = sorted(set(sizes))
    if len(sizes) < 2 or sizes[0] < 10 or sizes[-1] + NUM_CANARIES > len(pool) or view.scheme != "cross":
        raise InvalidInputError(
            f"pool sizes {sizes} cannot be compared with {len(pool)} images",
            hint=f"give two sizes or more, from 10 up to the number of images less {NUM_CANARIES}",
        )
    measured, recall = [], []
    for size in sizes:
        made = own_release(view, pool_size=size, seed=seed)
        assert made is not None
        own = made.view(view.public_images)
        started = time.process_time()
        found = identify_public_sources(own)
        measured.append((float(size), (time.process_time() - started) / len(found.rows)))
        recall.append((float(size), identification_scores(found, made.truth.public_rows)[0]["recall"]))
    logs = np.log(np.array(measured))
    exponent = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    first_size, first_seconds = measured[0]
    half_k = view.config.num_mixed / 2
    conjectured = [(size, first_seconds * (size / first_size) ** half_k) for size, _ in measured]
    return exponent, {"measured": measured, "conjectured": conjectured, "recall": recall}


def _sources_in_pool(made: Replica) -> NDArray[np.int64]:
    return made.truth.public_rows if made.public is not None else made.truth.private_rows


def _verdict(leaked: bool | None, metrics: dict[str, float], pool_size: int) -> str:
    if leaked is None:
        return (
            "It could not be decided whether images of the pool are inside: the attack fails on its own test."
        )
    if not leaked:
        return "No image of the pool was identified in any encoding."
    share = metrics["encodings_with_a_source"]
    return (
        f"Images of the public pool were named in {share:.0%} of the encodings, without trying combinations: "
        "the secrecy of the choice of public images protects little."
        if share >= 0.1
        else f"Images of the public pool were named in {share:.1%} of the encodings."
    )

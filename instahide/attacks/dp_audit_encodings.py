"""Canaries in encodings of mode ``dp``: is its epsilon contradicted?

Axes: N images, k sources of a row, d values, K = 2 classes, T releases, n trials, m canaries, r rows.

**Neighbours.** A pattern of black and white and class 1, against its negative and class 0: every value
moves by the most a pixel can, and the label from one class to the other. With ``max_norm`` both are shortened
to it and still lie 2·max_norm apart. No pair of images is further apart, so none is easier to tell.

**Many runs.** In each of n trials a fair coin picks the canary's version; the real encoder makes T epochs of
N = k images, the canary among them; the attacker knows all other images and, as the proof allows, who was
mixed with whom and λ. With m_0, m_1 the mixed rows and ℓ_0, ℓ_1 the labels of either world the score is

    Σ_rows with the canary   log P(e | m_1) − log P(e | m_0)  +  log p(t | ℓ_1) − log p(t | ℓ_0)          (1)

P exact for released values (noise, clip, rounding: a difference of two distribution functions), p the noise's
density as if labels had not been projected onto the simplex. Any score gives a valid bound; a poor one
gives a low bound.

**One run.** All N images are canaries with patterns and coins of their own; the attacker knows patterns,
partners and λ but no coin, and scores canary i by Σ_rows λ·⟨pattern_i, e⟩ and its label's weight. Cheap, and
weaker: partners' unknown coins and the many guesses both cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoder import Encoder, RecordedBatch
from ..encoder_config import EncoderConfig
from ..encoding_guarantee import guarantee_of_encodings
from ..errors import InvalidInputError
from ..images import ImageSet
from .cost import Cost
from .dp_audit import AuditFinding, CanaryScores, Claim, audit_result, judge, null_check
from .view import AttackResult

Progress = Callable[..., None]
_CLASSES = 2
_BLOCK = 200


@dataclass(frozen=True, eq=False)
class _Observed:
    """What the attacker is shown of one trial, by row with the canary in it: never the coin.

    ``values`` (r, d) and ``labels`` (r, K) as released; ``weights`` (r,) λ of the canary; ``others`` (r, d)
    and ``other_labels`` (r, K) what the other sources contribute before noise.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float64]
    others: NDArray[np.float64]
    other_labels: NDArray[np.float64]


def claim_of_encodings(
    config: EncoderConfig,
    *,
    image_shape: tuple[int, int, int],
    releases: int = 1,
    partner_uses: int | None = None,
    target_delta: float = 1e-5,
) -> Claim:
    """What :mod:`instahide.encoding_guarantee` says of inside encodings with two classes."""

    def guarantee(delta: float) -> Any:
        return guarantee_of_encodings(
            config,
            image_shape=image_shape,
            num_classes=_CLASSES,
            scheme="inside",
            releases=releases,
            partner_uses=partner_uses,
            target_delta=delta,
        )

    at_delta = guarantee(target_delta)
    mu = None if at_delta.noise_multiplier is None else 1 / at_delta.noise_multiplier
    return Claim(target_delta, lambda delta: float(guarantee(delta).epsilon), mu, at_delta.in_words())


def audit_encodings(
    config: EncoderConfig,
    *,
    image_shape: tuple[int, int, int] = (1, 8, 8),
    releases: int = 1,
    claim: Claim | None = None,
    trials: int = 2000,
    target_delta: float = 1e-5,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Audit mode ``dp`` by many runs of the real encoder with a worst-case canary (inside scheme).

    Args:
        config: the law that is run.
        claim: what is claimed of it; by default what this package claims. A wrong one must be found out.
        trials: n, half of them to choose a threshold. The largest ε they can show is about log(n / 16).
        seed: of patterns and coins; the encoder's secrets have none.

    Raises:
        RefusedError: a mode without noise, of which no ε may be claimed.
        InvalidInputError: fewer than 40 trials.
    """
    if trials < 40:
        raise InvalidInputError(f"{trials} trials show nothing", hint="use a thousand or more")
    if claim is None:
        claim = claim_of_encodings(
            config, image_shape=image_shape, releases=releases, target_delta=target_delta
        )
    with Cost() as cost:
        found = run_trials(config, image_shape, releases, trials, seed, max_seconds, progress)
        finding = judge(found, claim)
        null = null_check(claim, len(found.scores), kind="runs", seed=seed)
    return audit_result(
        "dp-audit: encodings",
        finding,
        claim,
        cost,
        assumptions=(
            "the attacker knows every image but one, and that one up to two versions",
            "the attacker is told who was mixed with whom and the coefficients, as the proof allows",
            "the two versions are each other's negatives with different classes: the furthest neighbours",
            "trials are independent runs of the real encoder",
        ),
        settings=_settings(config, image_shape, releases) | {"trials": len(found.scores)},
        seed=seed,
        checks={"null": _null_words(null)},
        stopped=len(found.scores) < trials,
    )


def audit_encodings_in_one_run(
    config: EncoderConfig,
    *,
    image_shape: tuple[int, int, int] = (1, 16, 16),
    num_canaries: int = 1000,
    releases: int = 1,
    claim: Claim | None = None,
    target_delta: float = 1e-5,
    seed: int = 0,
) -> AttackResult:
    """Audit mode ``dp`` from one run in which all images are canaries with coins of their own."""
    if num_canaries < 40:
        raise InvalidInputError(f"{num_canaries} canaries show nothing", hint="use some hundred or more")
    if claim is None:
        claim = claim_of_encodings(
            config, image_shape=image_shape, releases=releases, target_delta=target_delta
        )
    with Cost() as cost:
        found = run_once(config, image_shape, releases, num_canaries, seed)
        finding = judge(found, claim)
        null = null_check(claim, num_canaries, kind="one-run", seed=seed)
    return audit_result(
        "dp-audit: encodings, one run",
        finding,
        claim,
        cost,
        assumptions=(
            "the attacker knows every image up to two versions, and none of the coins that chose them",
            "the attacker is told who was mixed with whom and the coefficients, as the proof allows",
            "canaries are chosen independently by fair coins",
        ),
        settings=_settings(config, image_shape, releases) | {"canaries": num_canaries},
        seed=seed,
        checks={"null": _null_words(null)},
    )


def power_check(config: EncoderConfig, **options: Any) -> dict[str, AuditFinding]:
    """Planted faults, each with the claim of the faultless mechanism; every finding must contradict it.

    * ``"noise halved"``: half the noise that is claimed, on images and labels;
    * ``"composition forgotten"``: four releases, one claimed, partner uses not counted;
    * ``"label noise missing"``: images as claimed, labels practically bare.
    """
    shape = options.pop("image_shape", (1, 8, 8))
    trials, seed = options.pop("trials", 2000), options.pop("seed", 0)
    claim = claim_of_encodings(config, image_shape=shape)
    uncounted = claim_of_encodings(config, image_shape=shape, partner_uses=0)
    halved = replace(
        config, noise_scale=config.noise_scale / 2, label_noise_scale=config.label_noise_scale / 2
    )
    bare = replace(config, label_noise_scale=config.label_noise_scale / 50)
    return {
        "noise halved": judge(run_trials(halved, shape, 1, trials, seed), claim),
        "composition forgotten": judge(run_trials(config, shape, 4, trials, seed), uncounted),
        "label noise missing": judge(run_trials(bare, shape, 1, trials, seed), claim),
    }


def run_trials(
    config: EncoderConfig,
    image_shape: tuple[int, int, int],
    releases: int,
    trials: int,
    seed: int,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> CanaryScores:
    """n independent runs of the encoder, a coin each, and equation (1) for every one."""
    rng = np.random.default_rng(seed)
    count = max(2, config.num_mixed)
    pattern = rng.integers(0, 2, size=image_shape).astype(np.uint8) * 255
    images = rng.integers(0, 2, size=(count, *image_shape)).astype(np.uint8) * 255
    classes = np.arange(count) % _CLASSES
    encoders = []
    for world in (0, 1):
        images[0], classes[0] = (pattern if world else 255 - pattern), world
        private = ImageSet(images.copy(), classes.copy(), ("0", "1"))
        encoders.append(Encoder(config, private=private))
    known, coins, scores = _Known(encoders[1]), rng.random(trials) < 0.5, np.empty(0)
    started = time.perf_counter()
    for first in range(0, trials, _BLOCK):
        if max_seconds is not None and time.perf_counter() - started > max_seconds:
            break
        seen = []
        for coin in coins[first : first + _BLOCK]:
            encoder = encoders[int(coin)]
            batches = [batch for _ in range(releases) for batch in encoder._recorded_batches(count, 0)]
            seen.append(known.observe(batches))
        scores = np.concatenate([scores, _log_likelihood_ratios(seen, known)])
        if progress is not None:
            progress(len(scores), trials, "trials")
    return CanaryScores(scores, coins[: len(scores)], "runs")


def run_once(
    config: EncoderConfig, image_shape: tuple[int, int, int], releases: int, num_canaries: int, seed: int
) -> CanaryScores:
    """One run in which every image is a canary, and a score for each."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2, size=(num_canaries, *image_shape)).astype(np.uint8)
    coins = rng.random(num_canaries) < 0.5
    images = np.where(coins[:, None, None, None], patterns, 1 - patterns).astype(np.uint8) * np.uint8(255)
    encoder = Encoder(config, private=ImageSet(images, coins.astype(np.int64), ("0", "1")))
    signs = 2.0 * patterns.reshape(num_canaries, -1) - 1
    label_scale = 1 / config.label_noise_scale**2
    scores = np.zeros(num_canaries)
    for _ in range(releases):
        for batch in encoder._recorded_batches(num_canaries, 0):
            rows, weights = batch.source_rows[0], batch.coefficients
            values = batch.encoded.images.flatten(1).double().numpy() * config.output_range
            towards_one = (batch.encoded.labels[:, 1] - batch.encoded.labels[:, 0]).double().numpy()
            for source in range(rows.shape[1]):
                who, weight = rows[:, source], weights[:, source]
                image_part = (signs[who] * values).sum(axis=1) / config.noise_scale**2
                np.add.at(scores, who, weight * (image_part + label_scale * towards_one / 2))
    return CanaryScores(scores, coins, "one-run")


class _Known:
    """What the attacker knows beforehand: the law, all images, not the coin. ``encoder`` is of world 1."""

    def __init__(self, encoder: Encoder) -> None:
        private, factors = encoder._private, encoder._norm_factors
        assert private.labels is not None
        values = private.images.reshape(len(private), -1).astype(np.float64) / 127.5 - 1
        self.values = values if factors is None else values * factors[:, None]
        self.canary = self.values[0]  # world 0 has its negative, of the same norm
        self.classes = np.eye(_CLASSES)[private.labels]
        self.config = encoder.config

    def observe(self, batches: list[RecordedBatch]) -> _Observed:
        """The rows that hold the canary (row 0 of the images), without it."""
        rows = np.concatenate([batch.source_rows[0] for batch in batches])
        coefficients = np.concatenate([batch.coefficients for batch in batches])
        mine = rows == 0
        concerned = mine.any(axis=1)
        rows, mine, coefficients = rows[concerned], mine[concerned], coefficients[concerned]
        others = np.where(mine, 0.0, coefficients)
        return _Observed(
            np.concatenate([batch.encoded.images.flatten(1).numpy() for batch in batches])[concerned],
            np.concatenate([batch.encoded.labels.numpy() for batch in batches])[concerned],
            np.where(mine, coefficients, 0.0).sum(axis=1),
            np.einsum("rk,rkd->rd", others, self.values[rows]),
            np.einsum("rk,rkc->rc", others, self.classes[rows]),
        )


def _log_likelihood_ratios(seen: list[_Observed], known: _Known) -> NDArray[np.float64]:
    """(n,) equation (1) of each trial."""
    config = known.config
    values, labels, weights, others, other_labels = (
        np.concatenate([getattr(one, name) for one in seen]).astype(np.float64)
        for name in ("values", "labels", "weights", "others", "other_labels")
    )
    move = weights[:, None] * known.canary
    by_row = _log_probability(values, others + move, config).sum(axis=1)
    by_row -= _log_probability(values, others - move, config).sum(axis=1)
    for world, sign in ((1, 1.0), (0, -1.0)):
        expected = other_labels + weights[:, None] * np.eye(_CLASSES)[world]
        scaled = np.abs(labels - expected) / config.label_noise_scale
        by_row -= sign * (scaled if config.noise_law == "laplace" else scaled**2 / 2).sum(axis=1)
    starts = np.cumsum([0, *(len(one.weights) for one in seen[:-1])])
    return np.asarray(np.add.reduceat(by_row, starts))


def _log_probability(
    released: NDArray[np.float64], mean: NDArray[np.float64], config: EncoderConfig
) -> NDArray[np.float64]:
    """(r, d) log P of each released value: the noise's mass in the cell that rounds and clips to it."""
    levels, R = config.quantization_levels, config.output_range
    assert levels is not None
    half = 0.5 / levels
    low = np.where(released <= -1 + half, -np.inf, ((released - half) * R - mean) / config.noise_scale)
    high = np.where(released >= 1 - half, np.inf, ((released + half) * R - mean) / config.noise_scale)
    # Both laws are symmetric: a cell in the upper tail is turned over, where differences keep their digits.
    upper = np.where(np.isinf(high), low, high) + np.where(np.isinf(low), high, low) > 0
    low, high = np.where(upper, -high, low), np.where(upper, -low, high)
    mass = _distribution(high, config.noise_law) - _distribution(low, config.noise_law)
    return np.asarray(np.log(np.maximum(mass, 1e-300)))


def _distribution(x: NDArray[np.float64], law: str) -> NDArray[np.float64]:
    if law == "laplace":
        tail = 0.5 * np.exp(-np.abs(x))
        return np.where(x < 0, tail, 1 - tail)
    from scipy.special import ndtr

    return np.asarray(ndtr(x))


def _settings(config: EncoderConfig, image_shape: tuple[int, int, int], releases: int) -> dict[str, Any]:
    return {"law": config.to_dict(), "image_shape": list(image_shape), "releases": releases}


def _null_words(null: AuditFinding) -> str:
    verdict = "contradicted" if null.contradicted else "not contradicted"
    return f"scores of pure noise: lower bound {null.epsilon:.3g}, claim {verdict}"

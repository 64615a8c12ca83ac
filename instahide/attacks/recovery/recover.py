"""Recovery of the private images from encodings, in three tiers that are never mixed up.

Axes: N encodings, n private images, C channels, H rows, W columns, K classes.

============  ======================================================================================
tier          what the attacker is given, besides encodings, the public law, n and similar images
============  ======================================================================================
decode        which private images are in each encoding, and their coefficients
label-only    soft labels
no-labels     nothing else
============  ======================================================================================

label-only and no-labels first find the pairing (:mod:`.pairing`), then all tiers decode (:mod:`.decode`).
A known public pool is a flag of each tier. The first published attack (Carlini et al., S&P 2021) is of
tier label-only.

:func:`recover_images` sees a :class:`RecoveryView`; the truth goes to :func:`recovery_result` only. Whether
anything was recovered is decided without it (:mod:`.pairing_evidence`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...images import ImageSet
from ...mixing import to_unit_range
from ..cost import Cost
from ..view import AttackerView
from .decode import decode_images
from .decode_view import DecodedImages, DecodeView
from .pairing import Pairing, find_pairing
from .pairing_checks import canary_gain, null_gain
from .pairing_evidence import MIN_SMOOTHNESS, Gain, held_out_gain, share_public, smoothness
from .pairing_features import Features, mixture_features
from .pairing_pool import features_without_pool
from .sign_recovery import SignNetwork, train_sign_network
from .simulated_mixtures import MixtureSimulator

TIERS = ("decode", "label-only", "no-labels")
TRAINING_SECONDS = 90.0
TRAINING_SHARE = 0.5  # of a budget
SMOOTHNESS_SAMPLE = 512
MAX_PUBLIC = 20_000
MAX_WITHOUT_POOL = 2_000  # encodings: beyond, pairs are found without the pool, and searching it is slow
MIN_FOUND = 0.25  # of the pool images found in own mixtures; with less the pool is not the one mixed in


@dataclass(frozen=True, eq=False)
class RecoveryView:
    """What the attacker of a tier sees.

    Args:
        release: encodings, labels, law, public images, and the pool if it is known.
        num_private_images: n.
        tier: ``"decode"``, ``"label-only"`` or ``"no-labels"``; labels are ignored in the last.
        private_rows: (N, k_priv) for tier decode: images inside each encoding, 0..n−1.
        private_coefficients: (N, k_priv) for tier decode.
    """

    release: AttackerView
    num_private_images: int
    tier: str = "label-only"
    private_rows: NDArray[np.int64] | None = field(default=None, repr=False)
    private_coefficients: NDArray[np.floating] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise InvalidInputError(f"tier is {self.tier!r}", hint=f"use one of {', '.join(TIERS)}")
        if not 2 <= self.num_private_images <= len(self.release.encodings):
            raise InvalidInputError(
                f"{self.num_private_images} private images for {len(self.release.encodings)} encodings",
                hint="give n, the number of different private images; every one is encoded at least once",
            )
        if self.tier == "decode" and (self.private_rows is None or self.private_coefficients is None):
            raise InvalidInputError(
                "tier decode needs the pairing", hint="give private_rows and private_coefficients"
            )
        if self.tier == "label-only" and self.release.labels is None:
            raise InvalidInputError(
                "tier label-only needs labels, and the release has none", hint="use tier no-labels"
            )
        if self.tier != "decode" and self.num_private != 2:
            raise InvalidInputError(
                f"the pairing handles two private images in an encoding, not {self.num_private}",
                hint="with a known pairing, tier decode takes any number",
            )

    @property
    def num_private(self) -> int:
        """Private images in one encoding."""
        config = self.release.config
        return config.num_mixed if self.release.scheme == "inside" else config.num_private

    @property
    def labels(self) -> torch.Tensor | None:
        """(N, K) labels the tier may use."""
        return self.release.labels if self.tier == "label-only" else None

    @property
    def config(self) -> EncoderConfig:
        """The public law."""
        return self.release.config


@dataclass(frozen=True, eq=False)
class Recovery:
    """What an attacker got, and whether it is anything.

    Args:
        images: (n, C, H, W) float32 in [-1, 1], in the attack's own order.
        private_rows, coefficients: (N, k_priv) the pairing, given or found.
        leaked: decided without the truth; ``None``: too few encodings even for planted images to be found.
        gain, null, canaries: nats per encoding put aside (:mod:`.pairing_evidence`); ``None`` where not run.
        evidence: in tier decode, the z-score of :class:`.decode.DecodedImages`.
        smoothness: of the encodings' magnitudes relative to public mixtures.
        public_share: share of what was found that is public.
        pool_taken_out: whether the known pool was found in the encodings, and pairs without it.
        decoded: everything else the decoder says.
        cost: of all of it, checks included.
        seconds: processor seconds by step.
    """

    images: torch.Tensor
    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.floating]
    leaked: bool | None
    gain: Gain | None
    null: Gain | None
    canaries: Gain | None
    evidence: float | None
    smoothness: float
    public_share: float
    pool_taken_out: bool
    decoded: DecodedImages = field(repr=False)
    cost: Cost = field(repr=False)
    seconds: dict[str, float]


def recover_images(
    view: RecoveryView,
    *,
    network: SignNetwork | None = None,
    training_seconds: float = TRAINING_SECONDS,
    checks: bool = True,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> Recovery:
    """Recover the private images as far as ``view.tier`` allows.

    Args:
        network: trained under the same law before; ``None``: trained first.
        training_seconds: processor time for that.
        checks: also attack a null and planted canaries (tiers with a pairing to find).
        seed: of the attacker's own choices.
        max_seconds: wall-clock budget: shorter training, fewer rounds; the checks are left out if late.
        progress: called as ``progress(done, total=None, text="")``.
    """
    started = time.monotonic()
    with Cost() as cost:
        attack = _Attack(view, seed, progress)
        if max_seconds is not None:
            training_seconds = min(training_seconds, TRAINING_SHARE * max_seconds)
        attack.prepare(network, training_seconds)
        if view.tier != "decode":
            attack.pair()
        left = None if max_seconds is None else max(0.0, max_seconds - (time.monotonic() - started))
        attack.decode(left)
        if view.tier != "decode":
            late = max_seconds is not None and time.monotonic() - started > max_seconds
            attack.judge(checks and not late)
    return attack.recovery(cost)


class _Attack:
    """The steps, and what each leaves for the next."""

    def __init__(self, view: RecoveryView, seed: int, progress: Callable[..., None] | None) -> None:
        self.view, self.seed, self.progress = view, seed, progress
        self.release = view.release
        self.public = to_unit_range(self.release.public_images.images[:MAX_PUBLIC])
        self.network: SignNetwork | None = None
        self.features: Features | None = None
        self.pool: ImageSet | None = None  # taken out before pairs are found
        self.pairing: Pairing | None = None
        self.gain: Gain | None = None
        self.null: Gain | None = None
        self.canaries: Gain | None = None
        self.public_share = 0.0
        self.rows, self.coefficients = view.private_rows, view.private_coefficients
        self.seconds: dict[str, float] = {}
        self._clock = time.process_time()

    def _lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name], self._clock = now - self._clock, now

    def prepare(self, network: SignNetwork | None, training_seconds: float) -> None:
        """The sign network."""
        release = self.release
        if network is None and release.config.has_sign_mask:
            network = train_sign_network(
                release.public_images,
                release.config,
                scheme=release.scheme,
                public_pool=release.public_pool,
                cpu_seconds=training_seconds,
                seed=self.seed,
                progress=self.progress,
            )
        self.network = network
        self._lap("training")

    def pair(self) -> None:
        """Features and the pairing."""
        release = self.release
        if len(release.encodings) <= MAX_WITHOUT_POOL and self.network is not None:
            self.pool = release.public_pool
        self.features, found = self._features_and_found(release.encodings)
        if found < MIN_FOUND:
            self.pool = None
            self.features = self.features_of(release.encodings)
        self.pairing = find_pairing(
            self.features,
            self.view.labels,
            release.config,
            release.scheme,
            self.view.num_private_images,
            seed=self.seed,
            progress=self.progress,
        )
        self.rows = self.pairing.private_rows
        # A slot the attack is unsure of counts less.
        self.coefficients = self.pairing.coefficients * self.pairing.probability
        self._lap("pairing")

    def features_of(self, encodings: torch.Tensor) -> Features:
        """What is compared, for any encodings under the law."""
        return self._features_and_found(encodings)[0]

    def _features_and_found(self, encodings: torch.Tensor) -> tuple[Features, float]:
        release = self.release
        options: dict[str, Any] = {"seed": self.seed, "progress": self.progress}
        with torch.inference_mode():
            if self.pool is not None:
                assert self.network is not None
                shown = replace(release, encodings=encodings, labels=None)
                return features_without_pool(shown, self.pool, self.network, **options)
            law = (release.config, release.scheme)
            return mixture_features(encodings, self.public, *law, network=self.network, **options), 1.0

    def decode(self, max_seconds: float | None) -> None:
        """Images from the pairing."""
        release = self.release
        assert self.rows is not None
        assert self.coefficients is not None
        self.decoded = decode_images(
            DecodeView(
                release.encodings,
                self.rows,
                self.coefficients,
                self.view.num_private_images,
                release.public_images,
                release.config,
                release.scheme,
                release.public_pool,
            ),
            network=self.network,
            max_seconds=max_seconds,
            seed=self.seed,
            progress=self.progress,
        )
        self._lap("decoding")

    def judge(self, checks: bool) -> None:
        """Was anything found? On encodings put aside, on a null and on canaries."""
        assert self.features is not None
        assert self.pairing is not None
        release, n = self.release, self.view.num_private_images
        law = (release.config, release.scheme)
        self.gain = held_out_gain(self.features, self.view.labels, *law, n, seed=self.seed)
        self.public_share = share_public(self.features, self.pairing.vectors.mean, self.public)
        if checks:
            pool = None if self.pool is None else to_unit_range(self.pool.images)
            given = (len(release.encodings), self.view.labels, *law, n, self.seed)
            self.null = null_gain(self.features_of, self.public, *given, pool)
            images = release.public_images.images[:MAX_PUBLIC]
            self.canaries = canary_gain(self.features_of, images, *given, self.pool)
        self._lap("judging")

    def relative_smoothness(self) -> float:
        """Of the encodings, public mixtures being 1."""
        release = self.release
        simulator = MixtureSimulator(self.public, release.config, release.scheme, seed=self.seed)
        sources, weights = simulator.draw(SMOOTHNESS_SAMPLE)
        expected = smoothness((weights[:, :, None, None, None] * sources).sum(1))
        return smoothness(release.encodings) / max(expected, 1e-6)

    def _leaked(self, found: bool, smooth: float) -> bool | None:
        if found and smooth > MIN_SMOOTHNESS:
            return True
        blind = self.canaries is not None and not self.canaries.exceeds(self.null)
        return None if blind and smooth > MIN_SMOOTHNESS and self.public_share < 0.5 else False

    def recovery(self, cost: Cost) -> Recovery:
        """The end."""
        smooth = self.relative_smoothness()
        if self.view.tier == "decode":
            found = self.decoded.recovered
        else:
            assert self.gain is not None
            found = self.gain.exceeds(self.null) and self.public_share < 0.5
        assert self.rows is not None
        assert self.coefficients is not None
        return Recovery(
            images=self.decoded.images,
            private_rows=self.rows,
            coefficients=self.coefficients,
            leaked=self._leaked(bool(found), smooth),
            gain=self.gain,
            null=self.null,
            canaries=self.canaries,
            evidence=self.decoded.evidence if self.view.tier == "decode" else None,
            smoothness=smooth,
            public_share=self.public_share,
            pool_taken_out=self.pool is not None,
            decoded=self.decoded,
            cost=cost,
            seconds=self.seconds,
        )

"""Recovery against what the hospital can choose: how many releases of an image can it afford?

Axes: T releases, k sources, n private images, n·T encodings.

One attack at one setting says little about the next. Here the hospital's own images are encoded again and
again under settings that differ in one number, and the same attack is run on each:

=====================  ===============================================================================
along                  what changes
=====================  ===============================================================================
releases               T, encodings of each image
num-mixed              k
num-private-images     n
quantization-bits      bits of a released value
augment                0: images as they are; 1: cropped and mirrored before each encoding
=====================  ===============================================================================

**Affordable** is the largest T tried up to which the attack's own verdict is "nothing recovered" and no more
than one image in fifty comes out with an SSIM above 0.5. It is an upper bound: a better attack needs
fewer releases, and known images are recognised (membership) from fewer still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...errors import InvalidInputError
from ...images import ImageSet
from ...mixing import to_unit_range
from ..cost import Cost
from ..image_metrics import RecoveryScore, score_recovery
from ..settings import AttackSettings, Rehearsal, rehearse
from ..view import AttackerView, AttackResult
from .recover import RecoveryView, recover_images
from .sign_recovery import SignNetwork, train_sign_network

ALONG = ("releases", "num-mixed", "num-private-images", "quantization-bits", "augment")
RECOGNISABLE = 0.5
AFFORDABLE_SHARE = 0.02
Progress = Callable[..., None]


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """One setting: its value, the score of the attack, and the attack's own verdict."""

    value: int
    score: RecoveryScore
    leaked: bool
    cpu_seconds: float

    @property
    def recognisable(self) -> float:
        """Share of images with SSIM above 0.5."""
        return float((self.score.ssim > RECOGNISABLE).mean())


def recovery_curve(
    settings: AttackSettings,
    along: str,
    values: Sequence[int],
    *,
    tier: str = "label-only",
    pool_known: bool = False,
    training_seconds: float = 60.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackResult:
    """Attack one rehearsal of ``settings`` for every value of one of its numbers.

    Args:
        along: a name of the table above.
        values: to try, e.g. (1, 2, 5, 10, 20).
        tier, pool_known: of the attack.
        training_seconds: processor time for the sign network, once for each law.

    Raises:
        InvalidInputError: an unknown name, no value, or a value the settings cannot take.
    """
    if along not in ALONG:
        raise InvalidInputError(f"no curve along {along!r}", hint=f"use one of {', '.join(ALONG)}")
    if not values:
        raise InvalidInputError("no value to try", hint="give some, e.g. 1 2 5 10")
    points: list[CurvePoint] = []
    networks: dict[str, SignNetwork] = {}
    with Cost() as cost:
        for index, value in enumerate(sorted(set(values))):
            if progress is not None:
                progress(index, len(values), f"{along} {value}")
            rehearsal = rehearse(_with(settings, along, value))
            points.append(_attack(rehearsal, value, tier, pool_known, networks, training_seconds, seed))
    return _result(points, along, tier, pool_known, settings, cost, seed)


def affordable(points: Sequence[CurvePoint]) -> int:
    """The largest value up to which nothing was recovered; 0 if already the first leaks."""
    held = 0
    for point in points:
        if point.leaked or point.recognisable > AFFORDABLE_SHARE:
            break
        held = point.value
    return held


def _with(settings: AttackSettings, along: str, value: int) -> AttackSettings:
    if along == "releases":
        return replace(settings, releases=value)
    if along == "num-private-images":
        return replace(settings, num_private_images=value)
    if along == "augment":
        return replace(settings, augment=bool(value))
    if along == "num-mixed":
        return replace(settings, encoding=replace(settings.encoding, num_mixed=value))
    return replace(settings, encoding=replace(settings.encoding, quantization_bits=value))


def _attack(
    rehearsal: Rehearsal,
    value: int,
    tier: str,
    pool_known: bool,
    networks: dict[str, SignNetwork],
    training_seconds: float,
    seed: int,
) -> CurvePoint:
    replica = rehearsal.replica
    similar = ImageSet(rehearsal.others.images)
    release = AttackerView.of(replica.encoded, similar, public_pool=replica.public if pool_known else None)
    decode = tier == "decode"
    view = RecoveryView(
        release,
        len(replica.truth.images),
        tier,
        replica.truth.private_rows if decode else None,
        replica.truth.private_coefficients if decode else None,
    )
    law = f"{release.config} {release.scheme}"
    started = time.process_time()
    if law not in networks and release.config.has_sign_mask:
        networks[law] = train_sign_network(
            similar, release.config, scheme=release.scheme, cpu_seconds=training_seconds, seed=seed
        )
    recovery = recover_images(view, network=networks.get(law), checks=False, seed=seed)
    originals = to_unit_range(replica.truth.images.images).numpy()
    score = score_recovery(recovery.images.numpy(), originals)
    return CurvePoint(value, score, bool(recovery.leaked), time.process_time() - started)


def _result(
    points: list[CurvePoint],
    along: str,
    tier: str,
    pool_known: bool,
    settings: AttackSettings,
    cost: Cost,
    seed: int,
) -> AttackResult:
    worst = max(points, key=lambda point: point.score.mean_ssim)
    return AttackResult(
        name=f"recovery against {along}, tier {tier}" + (", pool known" if pool_known else ""),
        metrics={
            "mean_ssim_at_worst": worst.score.mean_ssim,
            "recognisable_at_worst": worst.recognisable,
        },
        intervals={"mean_ssim_at_worst": worst.score.mean_ssim_interval},
        **cost.figures(),
        assumptions=(
            f"tier {tier}; the public pool is {'known' if pool_known else 'not known'}",
            "the images that are not encoded are the attacker's images of the same kind",
            "one rehearsal of each setting; another one differs by a few hundredths of SSIM",
        ),
        settings={
            "along": along,
            "values": [point.value for point in points],
            "verdicts": [point.leaked for point in points],
            "num_private_images": settings.num_private_images,
            "releases": settings.releases,
            "encoding": settings.encoding.to_dict(),
            **({"affordable_releases": affordable(points)} if along == "releases" else {}),
        },
        verdict=_verdict(points, along),
        leaked=any(point.leaked for point in points),
        seed=seed,
        curves={
            "mean SSIM": [(float(point.value), point.score.mean_ssim) for point in points],
            "share with SSIM above 0.5": [(float(point.value), point.recognisable) for point in points],
        },
        curve_axes=(along, "recovered"),
    )


def _verdict(points: list[CurvePoint], along: str) -> str:
    if along == "releases":
        held, first = affordable(points), points[0].value
        if held == 0:
            return (
                f"no release is affordable: already with {first} encoding(s) of each image the attack "
                "rebuilds private images"
            )
        return (
            f"up to {held} encoding(s) of each image this attack rebuilds nothing; a better attack may, and "
            "known images are recognised from one"
        )
    leaking = [str(point.value) for point in points if point.leaked]
    if not leaking:
        return f"nothing recovered at any {along} tried"
    return f"private images are rebuilt at {along} {', '.join(leaking)}"

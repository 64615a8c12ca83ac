"""The defences that are compared, and what each lets an attacker see.

Every defence is described by what *leaves*: encodings (and how many of each image), or only updates of a
model; whose updates, one site's or the sum of several; and the noise in them. The attacks know the defence
and its settings (they are adaptive); they do not know its secrets.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...encoder_config import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One row of the frontier.

    Args:
        name: short, as in the table.
        words: what it does, for a reader who does not know it.
        encoding: the law under which the model's inputs are encoded; ``None``: plain images.
        uses_pool: cross scheme: public images are mixed in.
        releases: T, encodings of each image that leave (and are trained on).
        noise_multiplier: of DP-SGD; ``None``: plain SGD.
        pruned: share of an update's values set to zero before it leaves.
        sites_summed: sites whose updates are summed under secure aggregation; 1: each update is seen.
    """

    name: str
    words: str
    encoding: EncoderConfig | None = None
    uses_pool: bool = False
    releases: int = 1
    noise_multiplier: float | None = None
    pruned: float = 0.0
    sites_summed: int = 1

    @property
    def encodings_leave(self) -> bool:
        """Whether anybody outside holds encodings."""
        return self.encoding is not None


def _instahide(k: int, *, pool: bool, mode: str = "compat", bits: int | None = None) -> EncoderConfig:
    num_private = (1 if k == 2 else 2) if pool else k
    return EncoderConfig(
        num_mixed=k,
        num_private=num_private,
        mode=mode,
        min_private_sum=0.3 if k > 2 else 0.0,
        quantization_bits=bits,
    )


def _dp_instahide(scale: float) -> EncoderConfig:
    return EncoderConfig(
        num_mixed=4,
        num_private=4,
        mode="dp",
        coefficient_law="equal",
        noise_law="gaussian",
        noise_scale=scale,
        label_noise_scale=scale / 4,
        output_range=1 + 3 * scale,
    )


DEFENCES: tuple[Defence, ...] = (
    Defence(name="plain", words="federated training on plain images; each site's update is seen"),
    Defence(
        name="mixup k=4",
        words="weighted means of four private images, no sign mask",
        encoding=_instahide(4, pool=False, mode="mixup"),
    ),
    *(
        Defence(
            name=f"InstaHide inside k={k}",
            words=f"published law, {k} private images mixed",
            encoding=_instahide(k, pool=False),
        )
        for k in (2, 4, 6)
    ),
    *(
        Defence(
            name=f"InstaHide cross k={k}",
            words=f"published law, {1 if k == 2 else 2} private with {k - (1 if k == 2 else 2)} public",
            encoding=_instahide(k, pool=True),
            uses_pool=True,
        )
        for k in (2, 4, 6)
    ),
    Defence(
        name="InstaHide cross k=4, 8 bits",
        words="published law with values rounded to 8 bits",
        encoding=_instahide(4, pool=True, bits=8),
        uses_pool=True,
    ),
    *(
        Defence(
            name=f"hardened k=4, T={releases}",
            words=f"this toolkit's mode: grid coefficients, 8 bits, {releases} encoding(s) of each image",
            encoding=EncoderConfig(),
            uses_pool=True,
            releases=releases,
        )
        for releases in (1, 5, 20)
    ),
    Defence(
        name="hardened k=4, secure aggregation",
        words="as hardened k=4, T=1, but only the sum of five sites' updates is seen and no encoding leaves",
        encoding=EncoderConfig(),
        uses_pool=True,
        sites_summed=5,
    ),
    *(
        Defence(
            name=f"DP-InstaHide, noise {scale:g}",
            words=f"four private images in equal parts, Gaussian noise of {scale:g} on every value and of "
            "a quarter of that on the label",
            encoding=_dp_instahide(scale),
        )
        for scale in (2.0, 4.0)
    ),
    *(
        Defence(
            name=f"DP-SGD, noise {multiplier:g}",
            words=f"plain images; gradients of single images clipped, noise multiplier {multiplier:g}",
            noise_multiplier=multiplier,
        )
        for multiplier in (0.7, 1.0, 2.0)
    ),
    *(
        Defence(
            name=f"update pruning {share:.0%}",
            words=f"plain images; all but the largest {1 - share:.0%} of an update set to zero",
            pruned=share,
        )
        for share in (0.9, 0.99)
    ),
    Defence(
        name="secure aggregation",
        words="plain images; only the sum of five sites' updates is seen",
        sites_summed=5,
    ),
)

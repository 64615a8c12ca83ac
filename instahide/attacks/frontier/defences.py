"""The defences that are compared, and what each lets an attacker see.

Every defence is described by what *leaves*: encodings (and how many of each image), or only updates of a
model; whose updates, one site's or the sum of several; and the noise in them. The attacks know the defence
and its settings (they are adaptive); they do not know its secrets.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError

APPROACHES: dict[str, str] = {
    "baselines": "No protection, or a change that is not meant as one.",
    "differential privacy": "Noise in what leaves. A guarantee in numbers, epsilon, that holds against every "
    "attack; the noise costs accuracy.",
    "secure computation": "Cryptography computes on what nobody sees. Secure aggregation hides single "
    "updates behind their sum and costs no accuracy; what the sum itself tells is not protected. Training "
    "wholly inside a computation on shares hides everything but the result. One step of a small network on "
    "64 digits between two parties took 1,100 times (fully connected) and 750 times (convolutions) the "
    "processor time of the clear step, 64 and 159 MB from each party and about 200 exchanges; measured with "
    "CrypTen 0.4.1 as two processes on a 2-core machine by `python -m tests.benchmarks.secure_computation`.",
    "InstaHide": "Images are mixed and signs flipped before they leave. Ordinary training, cheap; no "
    "guarantee, and the attacks below get something back.",
    "together": "What can honestly be combined. An epsilon comes from the noise alone, whatever stands "
    "beside it.",
}
NOISES = ("", "examples", "encodings", "coordinator", "sites")
NUM_SITES = 5
SMALL_SITE = 10


@dataclass(frozen=True, kw_only=True)
class Defence:
    """One row of the frontier.

    Args:
        name: short, as in the table.
        words: what it does, for a reader who does not know it.
        approach: the group it stands in, of ``APPROACHES``.
        encoding: the law under which the model's inputs are encoded; ``None``: plain images.
        uses_pool: cross scheme: public images are mixed in.
        releases: T, encodings of each image that leave (and are trained on).
        noise: who is noisy: "" nobody; "examples": DP-SGD; "encodings": DP-InstaHide; "coordinator": it adds
            to the mean of the sites' changes; "sites": each adds a share to its own change.
        target_epsilon: what the noise keeps: of one image; of one site for the last two.
        pruned: share of an update's values set to zero before it leaves.
        summed: secure aggregation: only the sum of the sites' updates is seen, and no encoding leaves.
        images_per_site: how small sites are; 0: five sites.
    """

    name: str
    words: str
    approach: str = "baselines"
    encoding: EncoderConfig | None = None
    uses_pool: bool = False
    releases: int = 1
    noise: str = ""
    target_epsilon: float = 0.0
    pruned: float = 0.0
    summed: bool = False
    images_per_site: int = 0

    def __post_init__(self) -> None:
        if self.noise not in NOISES or self.approach not in APPROACHES:
            raise InvalidInputError(f"{self} is no defence", hint=f"noise is one of {NOISES}")
        if bool(self.noise) != (self.target_epsilon > 0):
            raise InvalidInputError(f"{self.name}: noise needs an epsilon", hint="both or neither")

    @property
    def encodings_leave(self) -> bool:
        """Whether anybody outside holds encodings."""
        return self.encoding is not None and not self.summed

    @property
    def unit(self) -> str:
        """What one epsilon is about."""
        return "site" if self.noise in ("coordinator", "sites") else "image"

    def num_sites(self, num_members: int) -> int:
        """Sites of a federation under this defence."""
        return max(2, num_members // self.images_per_site) if self.images_per_site else NUM_SITES


def _instahide(k: int, *, pool: bool, mode: str = "compat", bits: int | None = None) -> EncoderConfig:
    num_private = (1 if k == 2 else 2) if pool else k
    return EncoderConfig(
        num_mixed=k,
        num_private=num_private,
        mode=mode,
        min_private_sum=0.3 if k > 2 else 0.0,
        quantization_bits=bits,
    )


_DP_INSTAHIDE = EncoderConfig(
    num_mixed=4,
    num_private=4,
    mode="dp",
    coefficient_law="equal",
    noise_law="gaussian",
    noise_scale=1.0,
    label_noise_scale=1.0,
)
"""Its noise is set to the target when the images are known."""


DEFENCES: tuple[Defence, ...] = (
    Defence(name="plain", words="federated training on plain images; each site's update is seen"),
    Defence(
        name="mixup k=4",
        words="weighted means of four private images, no sign mask",
        encoding=_instahide(4, pool=False, mode="mixup"),
    ),
    *(
        Defence(
            name=f"update pruning {share:.0%}",
            words=f"plain images; all but the largest {1 - share:.0%} of an update set to zero",
            pruned=share,
        )
        for share in (0.9, 0.99)
    ),
    *(
        Defence(
            name=f"DP-SGD, epsilon {epsilon:g}",
            words="plain images; gradients of single images clipped, and noise in their sum",
            approach="differential privacy",
            noise="examples",
            target_epsilon=epsilon,
        )
        for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0)
    ),
    Defence(
        name="client-level DP, 5 sites, epsilon 8",
        words="plain images; a trusted coordinator clips the sites' changes and adds noise to their mean",
        approach="differential privacy",
        noise="coordinator",
        target_epsilon=8.0,
    ),
    Defence(
        name="client-level DP, small sites, epsilon 8",
        words=f"the same with a site for every {SMALL_SITE} images, so that the mean is over many",
        approach="differential privacy",
        noise="coordinator",
        target_epsilon=8.0,
        images_per_site=SMALL_SITE,
    ),
    Defence(
        name="secure aggregation",
        words="plain images; only the sum of five sites' updates is seen",
        approach="secure computation",
        summed=True,
    ),
    *(
        Defence(
            name=f"InstaHide inside k={k}",
            words=f"published law, {k} private images mixed",
            approach="InstaHide",
            encoding=_instahide(k, pool=False),
        )
        for k in (2, 4, 6)
    ),
    *(
        Defence(
            name=f"InstaHide cross k={k}",
            words=f"published law, {1 if k == 2 else 2} private with {k - (1 if k == 2 else 2)} public",
            approach="InstaHide",
            encoding=_instahide(k, pool=True),
            uses_pool=True,
        )
        for k in (2, 4, 6)
    ),
    Defence(
        name="InstaHide cross k=4, 8 bits",
        words="published law with values rounded to 8 bits",
        approach="InstaHide",
        encoding=_instahide(4, pool=True, bits=8),
        uses_pool=True,
    ),
    *(
        Defence(
            name=f"hardened k=4, T={releases}",
            words=f"this toolkit's mode: grid coefficients, 8 bits, {releases} encoding(s) of each image",
            approach="InstaHide",
            encoding=EncoderConfig(),
            uses_pool=True,
            releases=releases,
        )
        for releases in (1, 5, 20)
    ),
    Defence(
        name="hardened + secure aggregation",
        words="as hardened k=4, T=1, but only the sum of five sites' updates is seen and no encoding leaves",
        approach="together",
        encoding=EncoderConfig(),
        uses_pool=True,
        summed=True,
    ),
    *(
        Defence(
            name=f"DP-InstaHide, epsilon {epsilon:g}",
            words="four private images in equal parts, Gaussian noise on every value and on the label; the "
            "encodings leave",
            approach="together",
            encoding=_DP_INSTAHIDE,
            noise="encodings",
            target_epsilon=epsilon,
        )
        for epsilon in (8.0, 16.0)
    ),
    Defence(
        name="DP-SGD + secure aggregation, epsilon 8",
        words="five sites train by DP-SGD, each with noise enough for its own images, and only the sum of "
        "their updates is seen",
        approach="together",
        noise="examples",
        target_epsilon=8.0,
        summed=True,
    ),
    Defence(
        name="all together, epsilon 8",
        words="hardened encodings (T=1) that stay at the site, secure aggregation, and each site's share of "
        f"noise for whole sites in the sum; a site for every {SMALL_SITE} images. DP-SGD is not in it: one "
        "image is in several encodings, so clipping one encoding's gradient does not bound what it does",
        approach="together",
        encoding=EncoderConfig(),
        uses_pool=True,
        noise="sites",
        target_epsilon=8.0,
        summed=True,
        images_per_site=SMALL_SITE,
    ),
)

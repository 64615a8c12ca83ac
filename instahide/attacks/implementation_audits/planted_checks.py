"""Power and null check of every audit: a planted weakness must be found, a sound release must pass.

"Nothing found" means something only from an instrument that finds what is there. Each check makes two small
releases of random smooth pictures: one by :func:`.planted.plant` with the one fault the audit is about,
and one by the real encoder in its default mode. They take well under a second each.
"""

from __future__ import annotations

import pickle
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...encoder import Encoder, FewPixelsWarning
from ...encoder_config import EncoderConfig
from ...images import ImageSet
from ...storage import save_encoded
from ..view import AttackResult
from .artefacts import audit_artefacts
from .coefficient_reuse import audit_coefficients
from .fixed_pairs import audit_fixed_pairs
from .label_leakage import audit_labels
from .lattice import audit_lattice
from .mask_recovery import audit_mask_generator
from .mask_reuse import audit_masks
from .planted import Faults, plant, smooth_pictures
from .public_coverage import audit_public_coverage
from .release import Release
from .seed_laws import SEED_LAWS
from .seed_search import audit_seeds
from .self_mixing import audit_self_mixing

_COMPAT = EncoderConfig(num_mixed=4, num_private=2, mode="compat")


@dataclass(frozen=True)
class Check:
    """One audit on a weak and on a sound release.

    Args:
        planted: what was planted, in words.
        weak, sound: run the audit and give its result.
    """

    planted: str
    weak: Callable[[], AttackResult]
    sound: Callable[[], AttackResult]

    def outcomes(self) -> dict[str, str]:
        """``power`` and ``null`` in words; a check that fails says so first."""
        found, alarm = self.weak().leaked is True, self.sound().leaked is True
        return {
            "power": f"found: {self.planted}" if found else f"FAILED to find: {self.planted}",
            "null": "FALSE ALARM on a sound release" if alarm else "nothing in a sound release",
        }


def sound_release(
    *, epochs: int = 1, num_mixed: int = 4, public: bool = True, border: int = 0, images: int = 120
) -> Release:
    """Epochs of the real encoder in its default mode, of random smooth pictures."""
    private = smooth_pictures(images, seed=1, channels=1, border=border)
    pool = smooth_pictures(400, seed=2, border=border) if public else None
    config = EncoderConfig(num_mixed=num_mixed, num_private=min(2, num_mixed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)
        encoder = Encoder(config, private=private, public=pool)
    parts = [encoder.encode_epoch() for _ in range(epochs)]
    return Release(
        np.concatenate([part.images.numpy() for part in parts]),
        np.concatenate([part.labels.numpy() for part in parts]),
        encoder.config,
        encoder.scheme,
        epochs,
        public_pool=None if pool is None else pool.images,
    )


def weak_release(
    faults: Faults,
    *,
    config: EncoderConfig = _COMPAT,
    epochs: int = 1,
    public: bool = False,
    border: int = 0,
    channels: int = 1,
    images: int = 120,
) -> Release:
    """A release by the published law, with faults."""
    pool = smooth_pictures(400, seed=2, channels=channels, border=border) if public else None
    private: ImageSet = smooth_pictures(images, seed=1, channels=channels, border=border)
    return plant(private, config, faults, public=pool, epochs=epochs).release


def _two(mode: str = "compat") -> EncoderConfig:
    return EncoderConfig(num_mixed=2, num_private=2, mode=mode)


def _weak_artefacts() -> AttackResult:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pkl"
        path.write_bytes(pickle.dumps({"epoch": 3, "state": random.Random(1).getstate()}))  # noqa: S311
        return audit_artefacts([path])


def _sound_artefacts() -> AttackResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)
        encoder = Encoder(EncoderConfig(), private=smooth_pictures(20, seed=1))
    with tempfile.TemporaryDirectory() as folder:
        save_encoded(encoder.encode_epoch(), Path(folder) / "encoded")
        return audit_artefacts([Path(folder)])


CHECKS: dict[str, Check] = {
    "small seeds": Check(
        "numpy.random.seed(321) before the coefficients",
        lambda: audit_seeds(
            weak_release(Faults(coefficients_from=(SEED_LAWS[0], 321))), seed_bits=9, laws=SEED_LAWS[:3]
        ),
        lambda: audit_seeds(sound_release(), seed_bits=9, laws=SEED_LAWS[:3]),
    ),
    "mask generator": Check(
        "masks by torch.randint on pictures with a black border",
        lambda: audit_mask_generator(weak_release(Faults(mask_seed=5), border=6)),
        lambda: audit_mask_generator(sound_release(border=6)),
    ),
    "mask reuse": Check(
        "a pool of 100 masks for 120 encodings",
        lambda: audit_masks(weak_release(Faults(mask_pool=100))),
        lambda: audit_masks(sound_release()),
    ),
    "lattice decoding": Check(
        "two images in float32, coefficients in the labels",
        lambda: audit_lattice(weak_release(Faults(), config=_two()), max_pixels=200),
        lambda: audit_lattice(sound_release(num_mixed=2, public=False), max_pixels=200),
    ),
    "label leakage": Check(
        "labels of the published law, not renormalised",
        lambda: audit_labels(weak_release(Faults(), public=True)),
        lambda: audit_labels(sound_release()),
    ),
    "coefficient reuse": Check(
        "the last 20 rows take the coefficients of the first 20",
        lambda: audit_coefficients(weak_release(Faults(repeated_coefficients=20))),
        lambda: audit_coefficients(sound_release()),
    ),
    "self-mixing": Check(
        "partners by plain permutations over 20 epochs, k = 2",
        lambda: audit_self_mixing(
            weak_release(Faults(mixes_with_itself=True), config=_two(), epochs=20, images=60)
        ),
        lambda: audit_self_mixing(sound_release(num_mixed=2, public=False)),
    ),
    "fixed pairs": Check(
        "the same partners in five epochs",
        lambda: audit_fixed_pairs(weak_release(Faults(same_partners=True), epochs=5, public=True)),
        lambda: audit_fixed_pairs(sound_release(epochs=5)),
    ),
    "public coverage": Check(
        "public images from the first 25 of a pool of 400",
        lambda: audit_public_coverage(weak_release(Faults(first_public_only=25), epochs=5, public=True)),
        lambda: audit_public_coverage(sound_release(epochs=5)),
    ),
    "artefacts": Check("Python's generator state in a pickled checkpoint", _weak_artefacts, _sound_artefacts),
}  # fmt: skip

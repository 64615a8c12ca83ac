"""A public challenge whose truth is sealed, and which anyone can score once it is opened.

The InstaHide challenge of 2020 kept its truth closed: nobody but its makers could score an answer, and after
its last entry nobody did. Here the organiser publishes, together with the encodings, the truth *encrypted*
(ChaCha20-Poly1305, RFC 8439) and a commitment to the key; after the deadline the key is published. Until
then nobody can look; from then on everybody can

1. check that the key is the one committed to, and that the sealed truth is whole;
2. check that the encodings really come from that truth: |Σ λ_j x_j| = |encoding| for every pixel (within
   the rounding of the law), so a maker who swapped the truth afterwards is found out;
3. score any answer with the metrics of :mod:`.image_metrics`.

    DIR/public/encoded.npz  public.npz  challenge.json  sealed-truth.bin    to publish
    DIR/opening-key.txt     mode 0600                                        to keep until the deadline

Axes: n private images, T releases, N = n·T encodings, k sources.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from ..atomic import atomic_write_bytes, atomic_write_text
from ..encoder_config import EncoderConfig
from ..errors import IntegrityError, InvalidInputError
from ..images import ImageSet
from .image_metrics import leaderboard_scores, score_recovery
from .replica import Replica, Truth, make_replica

FORMAT = "instahide-challenge/1"
_NONCE_BYTES = 12
_KEY_BYTES = 32


@dataclass(frozen=True)
class Tier:
    """One difficulty: n images, T releases, and the law."""

    num_private_images: int
    releases: int
    config: EncoderConfig
    has_pool: bool
    words: str


TIERS = {
    "2020": Tier(
        100, 50, EncoderConfig(num_mixed=6, mode="compat"), True, "the challenge of 2020: k=6, T=50"
    ),
    "few-releases": Tier(100, 10, EncoderConfig(num_mixed=6, mode="compat"), True, "k=6, T=10"),
    "once": Tier(100, 1, EncoderConfig(num_mixed=6, mode="compat"), True, "k=6, one encoding of each image"),
    "eight-bit": Tier(
        100,
        20,
        EncoderConfig(num_mixed=6, mode="compat", quantization_bits=8),
        True,
        "k=6, T=20, 8-bit values",
    ),
    "inside": Tier(100, 20, EncoderConfig(num_mixed=4, mode="compat"), False, "k=4, all private, T=20"),
    "many-images": Tier(500, 20, EncoderConfig(num_mixed=6, mode="compat"), True, "500 images, k=6, T=20"),
    "hardened": Tier(100, 1, EncoderConfig(), True, "this toolkit's default: k=4, 8 bits, one encoding"),
}


def make_challenge(tier: str, private: ImageSet, public: ImageSet | None, folder: Path) -> dict[str, Any]:
    """Encode ``private`` under ``tier``, seal the truth and write both parts.

    Args:
        private: exactly the tier's n labelled images, chosen by the caller.
        public: the pool; unused in the inside tier.

    Returns:
        what ``challenge.json`` holds.

    Raises:
        InvalidInputError: an unknown tier, another number of images, no pool, or a folder that is not empty.
    """
    law = _tier(tier)
    if len(private) != law.num_private_images:
        raise InvalidInputError(
            f"tier {tier} has {law.num_private_images} private images, not {len(private)}",
            hint="choose that many",
        )
    if law.has_pool and public is None:
        raise InvalidInputError(f"tier {tier} mixes in public images", hint="give a public pool")
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInputError(f"{folder} is not empty", hint="give a new folder")
    pool = public if law.has_pool else None
    replica = make_replica(private, public=pool, config=law.config, releases=law.releases)
    return _publish(tier, replica, folder)


def open_truth(folder: Path, key: bytes) -> Truth:
    """The truth of a published challenge, verified against its commitments and its encodings.

    Raises:
        IntegrityError: another key, a changed file, or encodings that do not come from this truth.
    """
    document = read_challenge(folder)
    if hashlib.sha256(key).hexdigest() != document["key_sha256"]:
        raise IntegrityError("this is not the key that was committed to", hint="ask for the published key")
    sealed = (folder / "sealed-truth.bin").read_bytes()
    try:
        plain = ChaCha20Poly1305(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], FORMAT.encode())
    except InvalidTag as error:
        raise IntegrityError("the sealed truth is damaged or was changed", hint="copy it again") from error
    with np.load(io.BytesIO(plain)) as arrays:
        truth = Truth(
            ImageSet(arrays["images"], arrays["labels"]),
            arrays["private_rows"],
            arrays["coefficients"],
            arrays["public_rows"],
        )
    verify_truth(folder, truth, EncoderConfig.from_dict(document["law"]))
    return truth


def verify_truth(folder: Path, truth: Truth, config: EncoderConfig) -> None:
    """Raise IntegrityError unless every encoding is, but for its signs, the mixture the truth says."""
    with np.load(folder / "encoded.npz") as file:
        seen = np.abs(file["encodings"]).astype(np.float64).reshape(len(truth.coefficients), -1)
    own = _as_values(truth.images.images)
    mixed = np.einsum("nk,nkd->nd", truth.private_coefficients, own[truth.private_rows])
    if truth.public_rows.shape[1]:
        with np.load(folder / "public.npz") as file:
            pool = _as_values(file["x"])
        rest = truth.coefficients[:, truth.private_rows.shape[1] :]
        mixed += np.einsum("nk,nkd->nd", rest, pool[truth.public_rows])
    levels = config.quantization_levels
    # A dithered value lies less than one level from the mixture; float32 sums err by some 1e-7.
    allowed = 1e-5 if levels is None else 1 / levels + 1e-5
    worst = float(np.abs(np.abs(mixed) - seen).max())
    if worst > allowed:
        raise IntegrityError(
            f"the encodings do not come from the sealed images: a value is off by {worst:.3g}",
            hint="the challenge is not what it says; do not score it",
        )


def score_answer(folder: Path, key: bytes, images: NDArray[np.floating]) -> dict[str, Any]:
    """Score recovered ``images`` (at most n, (m, C, H, W) in [−1, 1]); the truth is verified first.

    Also scores as the leaderboard of 2020 did: each encoding is answered by the recovered image nearest to
    the own image it holds.
    """
    truth = open_truth(folder, key)
    originals = _as_values(truth.images.images).reshape(truth.images.images.shape)
    score = score_recovery(images, originals)
    matched = np.where(score.matched >= 0, score.matched, 0)
    answers = np.asarray(images)[matched[truth.private_rows[:, 0]]]
    return {
        "tier": read_challenge(folder)["tier"],
        **score.to_metrics(),
        "mean_ssim_interval": list(score.mean_ssim_interval),
        "leaderboard_2020": leaderboard_scores(answers, originals, truth.private_rows),
        "truth_verified": True,
    }


def read_challenge(folder: Path) -> dict[str, Any]:
    """``challenge.json``, with the published files checked against its hashes.

    Raises:
        InvalidInputError: not a challenge.
        IntegrityError: a file that is not the published one.
    """
    try:
        document: dict[str, Any] = json.loads((folder / "challenge.json").read_text(encoding="utf-8"))
        files = dict(document["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{folder} is not a challenge: {error}", hint="give the folder that holds challenge.json"
        ) from error
    for name, digest in files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise IntegrityError(f"{name} is not the published file", hint="copy the challenge again")
    return document


def read_key(path: Path) -> bytes:
    """The opening key in a file of 64 hexadecimal digits."""
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} holds no key: {error}", hint="64 hexadecimal digits") from error
    if len(key) != _KEY_BYTES:
        raise InvalidInputError(
            f"{path} holds {len(key)} bytes, not {_KEY_BYTES}", hint="64 hexadecimal digits"
        )
    return key


def _publish(tier: str, replica: Replica, folder: Path) -> dict[str, Any]:
    published = folder / "public"
    published.mkdir(parents=True)
    atomic_write_bytes(
        published / "encoded.npz",
        _npz(encodings=replica.encoded.images.numpy(), labels=replica.encoded.labels.numpy()),
    )
    if replica.public is not None:
        atomic_write_bytes(published / "public.npz", _npz(x=replica.public.images))
    key, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
    truth = replica.truth
    assert truth.images.labels is not None
    plain = _npz(
        images=truth.images.images,
        labels=truth.images.labels,
        private_rows=truth.private_rows,
        coefficients=truth.coefficients,
        public_rows=truth.public_rows,
    )
    sealed = nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, FORMAT.encode())
    atomic_write_bytes(published / "sealed-truth.bin", sealed)
    law = _tier(tier)
    document = {
        "format": FORMAT,
        "tier": tier,
        "words": law.words,
        "num_private_images": law.num_private_images,
        "releases": law.releases,
        "scheme": replica.encoded.scheme,
        "law": replica.encoded.config.to_dict(),
        "key_sha256": hashlib.sha256(key).hexdigest(),
        "files": {file.name: _sha256(file) for file in sorted(published.iterdir())},
    }
    atomic_write_text(published / "challenge.json", json.dumps(document, indent=2) + "\n")
    atomic_write_text(folder / "opening-key.txt", key.hex() + "\n", mode=0o600)
    return document


def _tier(name: str) -> Tier:
    if name not in TIERS:
        raise InvalidInputError(f"there is no tier {name!r}", hint=f"use one of {', '.join(TIERS)}")
    return TIERS[name]


def _as_values(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _npz(**arrays: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

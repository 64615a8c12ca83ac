"""Encoding to disk as a job: charged once, resumable after a kill, never half there.

1. Take the folder's lock, so that a second job is refused.
2. Write the job file (``.encode-job.json``, mode 0600): a random token, the settings, a keyed
   hash of the data. No key, coefficient, partner or sign is in it or anywhere else on disk.
3. Charge the ledger: ``epochs`` own uses of every image under the job's token, and
   ``epochs * partner_uses_per_epoch`` partner uses.
4. Encode shard by shard. A shard's hash is in the job file before its name is in the folder, so
   a resumed job knows a whole shard from a piece.
5. Write the manifest, which makes the folder a data set, and remove the job file.

What a resumed job may do. The secrets of the killed run are gone, so the rest of the epoch is
encoded with fresh ones. Rows of finished shards are not encoded again, and an unfinished shard
is deleted before its rows are, so each image is an own slot once an epoch, as charged. Partners
are drawn afresh over all images, since the old draw is not kept: an image may be a partner
again, so each resume inside an epoch charges ``partner_uses_per_epoch`` more partner uses, an
upper bound.

In ``hardened`` mode the rows of a shard are shuffled: row numbers then do not tell which
encodings, of different epochs, show the same image.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .atomic import atomic_write_bytes, atomic_write_text
from .encoded_dataset import EncodedDataset
from .encoder import Encoder
from .encoder_config import EncoderConfig
from .errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError
from .exposure import RELEASED, ExposureLedger
from .fingerprints import Fingerprints
from .images import ImageSet
from .manifest import MANIFEST_NAME, Manifest, ShardRecord, read_manifest, write_manifest
from .randomness import Randomness
from .storage import (
    PRIVATE_FILE,
    describe,
    file_sha256,
    rebatch,
    serialize_shard,
    shard_rows,
)

JOB_FILE = ".encode-job.json"
_BATCH_BYTES = 16 << 20
_JOB_VERSION = 1

Progress = Callable[[int, int], None]
"""Called with (rows written, rows in all)."""


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What a finished job wrote; ``copies_left_out`` images were repeats the budget has no room for."""

    path: Path
    manifest: Manifest
    copies_left_out: int
    rows_kept_from_before: int
    own_uses: int
    partner_uses: int


def default_max_releases(config: EncoderConfig) -> int | None:
    """1 in modes ``hardened`` and ``dp``; the research modes are counted but not limited."""
    return 1 if config.mode in ("hardened", "dp") else None


def encode_to_folder(
    config: EncoderConfig,
    path: str | os.PathLike[str],
    *,
    private: ImageSet,
    ledger: ExposureLedger,
    public: ImageSet | None = None,
    epochs: int = 1,
    max_releases: int | Literal["default"] | None = "default",
    max_partner_uses: int | None = None,
    shard_size: int | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> EncodeResult:
    """Encode ``private`` into the folder ``path`` and charge the ledger for its release.

    Exact copies of an image beyond what the budget allows are left out: an image encoded twice
    is released twice. Memory is that of a shard beyond the input (and of the kept images, if
    copies were left out).

    Args:
        epochs: encodings of each image; more than one needs ``max_releases`` raised as well.
        max_releases: budget of own uses per image, over the ledger's whole life; ``None`` is no
            limit, ``"default"`` is :func:`default_max_releases`.
        resume: take up an interrupted job in ``path`` if there is one, with the same settings.

    Raises:
        RefusedError: over budget, or another job is at work in the folder.
        InvalidInputError: a folder in the way, or settings or data that differ on resume.
        IntegrityError: a finished shard of an interrupted job is damaged or gone.
    """
    if epochs < 1:
        raise InvalidInputError(f"epochs is {epochs}", hint="1 is one encoding of each image")
    budget = default_max_releases(config) if max_releases == "default" else max_releases
    kept, fingerprints = _within_budget(private, ledger, None if budget is None else budget // epochs)
    encoder = Encoder(config, private=kept, public=public)
    settings = {
        "law": encoder.config.to_dict(),
        "scheme": encoder.scheme,
        "epochs": epochs,
        "shard_rows": shard_rows(kept.image_shape, shard_size),
        "images": fingerprints.commitment,
    }
    with _locked_folder(Path(path)) as folder:
        job = _Job.resume(folder, settings) if resume else None
        job = job or _Job.begin(folder, settings)
        kept_rows = sum(shard.num_images for shard in job.shards)
        manifest = job.finished_manifest()
        if manifest is None:
            partner = job.charge(ledger, fingerprints, encoder, budget, max_partner_uses)
            manifest = job.encode_rest(encoder, kept, on_progress)
        else:
            partner = job.partner_uses(encoder)
        job.remove()
    return EncodeResult(
        path=Path(path),
        manifest=manifest,
        copies_left_out=len(private) - len(kept),
        rows_kept_from_before=kept_rows,
        own_uses=epochs,
        partner_uses=partner,
    )


class _Job:
    """The state of one job in one locked folder, written to the job file at every step."""

    def __init__(self, folder: Path, settings: dict[str, Any], token: str) -> None:
        self.folder = folder
        self.settings = settings
        self.token = token
        self.resumes = 0  # resumes inside an epoch, each charged
        self.shards: list[ShardRecord] = []
        self.pending: ShardRecord | None = None
        self.is_new = True

    @classmethod
    def begin(cls, folder: Path, settings: dict[str, Any]) -> _Job:
        for piece in folder.glob(f".{JOB_FILE}.*.partial"):  # of a job killed before it had begun
            piece.unlink()
        names = {entry.name for entry in folder.iterdir()}
        if JOB_FILE in names:
            raise InvalidInputError(
                f"{folder} holds an interrupted encoding",
                hint="finish it with --resume, or choose a new folder",
            )
        if MANIFEST_NAME in names:
            raise InvalidInputError(
                f"{folder} already holds an encoded data set", hint="choose a new folder, or delete this one"
            )
        if names:
            raise InvalidInputError(f"{folder} holds other files", hint="choose an empty or a new folder")
        job = cls(folder, settings, secrets.token_hex(16))
        job.save()
        return job

    @classmethod
    def resume(cls, folder: Path, settings: dict[str, Any]) -> _Job | None:
        """The interrupted job, with its leftovers cleared; None when there is none."""
        file = folder / JOB_FILE
        if not file.exists():
            return None
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if state["format_version"] != _JOB_VERSION:
                raise ValueError(f"format version {state['format_version']}")
            job = cls(folder, dict(state["settings"]), str(state["token"]))
            job.resumes = int(state["resumes"])
            job.shards = [ShardRecord(**record) for record in state["shards"]]
            job.pending = ShardRecord(**state["pending"]) if state["pending"] else None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{file.name} is damaged ({error})", hint="delete the folder and encode into a new one"
            ) from error
        job.is_new = False
        job.check_settings(settings)
        job.settle_leftovers()
        return job

    def save(self) -> None:
        state = {
            "format_version": _JOB_VERSION,
            "token": self.token,
            "settings": self.settings,
            "resumes": self.resumes,
            "shards": [asdict(shard) for shard in self.shards],
            "pending": asdict(self.pending) if self.pending else None,
        }
        atomic_write_text(self.folder / JOB_FILE, json.dumps(state, indent=1), mode=PRIVATE_FILE)

    def check_settings(self, settings: dict[str, Any]) -> None:
        differing = [name for name in settings if settings[name] != self.settings.get(name)]
        if differing:
            what = "the images (or the ledger)" if differing == ["images"] else ", ".join(differing)
            raise InvalidInputError(
                f"the interrupted job differs in {what}", hint="resume with the same data, ledger and options"
            )

    def settle_leftovers(self) -> None:
        """Delete pieces of files, count a shard that was whole when the kill came, check the others."""
        for piece in self.folder.glob(".*.partial"):
            piece.unlink()
        if self.pending and (self.folder / self.pending.name).exists():
            self.shards.append(self.pending)
        self.pending = None
        for shard in self.shards:
            file = self.folder / shard.name
            if not file.is_file() or file_sha256(file) != shard.sha256:
                raise IntegrityError(
                    f"{shard.name} of the interrupted job is damaged or gone",
                    hint="its rows may not be encoded again under this charge; encode into a new folder",
                )

    def finished_manifest(self) -> Manifest | None:
        """The manifest, when only the job file's removal was missing."""
        return read_manifest(self.folder) if (self.folder / MANIFEST_NAME).exists() else None

    def partner_uses(self, encoder: Encoder) -> int:
        return encoder.partner_uses_per_epoch * (int(self.settings["epochs"]) + self.resumes)

    def charge(
        self,
        ledger: ExposureLedger,
        images: Fingerprints,
        encoder: Encoder,
        max_releases: int | None,
        max_partner_uses: int | None,
    ) -> int:
        """Charge the job, once however often it is resumed; returns the partner uses charged in all."""
        epochs, per_epoch = int(self.settings["epochs"]), encoder.partner_uses_per_epoch
        limits = {"max_own_uses": max_releases, "max_partner_uses": max_partner_uses}
        try:
            ledger.reserve(
                images, kind=RELEASED, own=epochs, partner=epochs * per_epoch, job=self.token, **limits
            )
        except RefusedError:
            if self.is_new:  # nothing was encoded: leave no trace of the attempt
                self.remove()
            raise
        if self._rows_done() % len(images):
            extra = f"{self.token}/resume-{self.resumes + 1}"
            ledger.reserve(images, kind=RELEASED, own=0, partner=per_epoch, job=extra, **limits)
            self.resumes += 1  # a kill before the next line repeats the same token: charged once
            self.save()
        return self.partner_uses(encoder)

    def encode_rest(self, encoder: Encoder, images: ImageSet, on_progress: Progress | None) -> Manifest:
        """Encode what is missing, shard by shard, and write the manifest."""
        epochs, total = int(self.settings["epochs"]), len(images) * int(self.settings["epochs"])
        shuffled = encoder.config.mode == "hardened"
        report = on_progress or (lambda done, total: None)
        report(self._rows_done(), total)
        while self._rows_done() < total:
            for shard in self._rest_of_epoch(encoder, images):
                self._write(_shuffled(shard) if shuffled else shard)
                report(self._rows_done(), total)
        manifest = describe(
            self.shards,
            config=encoder.config,
            scheme=encoder.scheme,
            image_shape=images.image_shape,
            class_names=images.class_names or (),
            epochs=epochs,
            row_order="shuffled-within-shards" if shuffled else "data",
        )
        write_manifest(self.folder, manifest, mode=PRIVATE_FILE)
        return manifest

    def remove(self) -> None:
        (self.folder / JOB_FILE).unlink(missing_ok=True)

    def _rows_done(self) -> int:
        return sum(shard.num_images for shard in self.shards)

    def _rest_of_epoch(self, encoder: Encoder, images: ImageSet) -> Iterator[EncodedDataset]:
        rows = int(self.settings["shard_rows"])
        batch = max(1, min(rows, _BATCH_BYTES // (4 * int(np.prod(images.image_shape)))))
        batches = encoder.encode_batches(batch, start=self._rows_done() % len(images))
        return rebatch(batches, rows)

    def _write(self, shard: EncodedDataset) -> None:
        record, data = serialize_shard(len(self.shards), shard)
        self.pending = record
        self.save()
        atomic_write_bytes(self.folder / record.name, data, mode=PRIVATE_FILE)
        self.shards.append(record)
        self.pending = None
        self.save()


def _within_budget(
    images: ImageSet, ledger: ExposureLedger, allowed: int | None
) -> tuple[ImageSet, Fingerprints]:
    """The first ``allowed`` copies of each image; below one the ledger will refuse, with its reason."""
    fingerprints = ledger.fingerprints(images)
    if allowed is None or allowed < 1:
        return images, fingerprints
    kept = fingerprints.first_copies(allowed)
    if kept.all():
        return images, fingerprints
    fewer = images.subset(kept)
    return fewer, ledger.fingerprints(fewer)


def _shuffled(shard: EncodedDataset) -> EncodedDataset:
    order = torch.from_numpy(Randomness().stream("partners").permutation(len(shard)))
    return replace(shard, images=shard.images[order], labels=shard.labels[order])


@contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """The folder, made if need be (mode 0700) and locked; the lock goes with the process."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be used as a folder: {error.strerror}", hint="choose another folder"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    except BlockingIOError as error:
        raise RefusedError(
            f"another job is encoding into {path}", hint="wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise InstaHideError(
            f"writing to {path} failed: {error.strerror or error}",
            hint="free some space or mend the disk, then run again with --resume",
        ) from error
    finally:
        os.close(descriptor)
        if made:
            with suppress(OSError):
                path.rmdir()  # only if nothing was put into it

"""Look at a data set before it is encoded: counts, sizes, and what would spoil a result.

A test image that also stands in the training split, or a patient in both, makes every accuracy
and every privacy figure look better than it is. The report decodes each picture once and keeps
only a fingerprint (a hash of its pixels, so the same picture in two file formats is still the
same) with its size and spread. It names files and array rows; of subjects it gives numbers only.

    report = inspect_dataset("chest/")
    report.has_leaks        # the same picture or subject in two splits
    report.to_dict()        # the whole report for JSON
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError
from .readers.assemble import array_images, plain
from .readers.catalogue import ArrayPart, Catalogue, Item
from .readers.decode import decode_each
from .readers.formats import find_catalogue
from .readers.limits import Limits, QuarantinedFile
from .readers.units import Decoded, Plan, plan_units, shows_something

MAX_BAD_FRACTION = 0.01


@dataclass(frozen=True)
class SplitReport:
    """One split: how many images, of which classes, and how many subjects (None: not known)."""

    name: str
    num_images: int
    class_counts: dict[str, int]
    num_subjects: int | None

    @property
    def imbalance(self) -> float | None:
        """Images of the largest class over those of the smallest that has any; None without labels."""
        counts = [count for count in self.class_counts.values() if count]
        return max(counts) / min(counts) if counts else None


@dataclass(frozen=True)
class DatasetReport:
    """What ``inspect_dataset`` found. Groups list the names of the same picture, in reading order.

    ``sizes`` (width x height), ``channels`` and ``depths`` count images; ``duplicates_within`` are
    groups inside one split, ``duplicates_across`` groups that touch two; ``label_conflicts`` are
    groups that carry two labels; ``subjects_in_two_splits`` is a number, never a list.
    """

    format: str
    num_bytes: int
    class_names: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    sizes: dict[str, int]
    channels: dict[str, int]
    depths: dict[str, int]
    unreadable: tuple[QuarantinedFile, ...]
    duplicates_within: tuple[tuple[str, ...], ...]
    duplicates_across: tuple[tuple[str, ...], ...]
    label_conflicts: tuple[tuple[str, ...], ...]
    near_constant: tuple[str, ...]
    subjects_in_two_splits: int
    empty_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    num_volumes: int = 0
    num_files: int = 0

    @property
    def num_images(self) -> int:
        return sum(split.num_images for split in self.splits)

    @property
    def has_leaks(self) -> bool:
        """Whether a picture or a subject stands in two splits."""
        return bool(self.duplicates_across) or self.subjects_in_two_splits > 0

    @property
    def bad_fraction(self) -> float:
        """Share of the files that cannot be used; of the images where they are rows of an array."""
        total = self.num_files or self.num_images + len(self.unreadable)
        return len(self.unreadable) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON, with the verdicts worked out."""
        report = asdict(self)
        for plain_split, split in zip(report["splits"], self.splits, strict=True):
            plain_split["imbalance"] = split.imbalance
        return {
            **report,
            "num_images": self.num_images,
            "has_leaks": self.has_leaks,
            "bad_fraction": self.bad_fraction,
        }


def inspect_dataset(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> DatasetReport:
    """Decode every image of ``path`` once and report; pictures of several sizes are fine here.

    ``on_progress`` is called with the number of images seen, after each.

    Raises:
        InvalidInputError: no images, or a format that is not known.
        IntegrityError: an array file is corrupt or truncated.
        RefusedError: a size above a cap, or a path that leaves the data folder.
    """
    limits = limits or Limits()
    catalogue = find_catalogue(Path(path), limits)
    tally = _Tally(catalogue, on_progress)
    for part in catalogue.parts:
        if isinstance(part, ArrayPart):
            tally.add(part.split, _from_array(part))
            continue
        plan = plan_units(part.items, limits, 16, catalogue.slicing)
        tally.add_plan(plan, len(part.items))
        tally.add(part.split, _from_files(plan))
    return tally.report()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of one image."""

    name: str
    label: int | None
    digest: bytes
    size: str
    channels: int
    depth: str
    near_constant: bool
    subject: str | None = field(default=None, repr=False)


def _fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """128-bit hash of shape and pixels; a grey picture stored as colour counts as grey."""
    if pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]
    header = repr(pixels.shape).encode("ascii")
    return hashlib.blake2b(header + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()


def _seen(name: str, label: int | None, pixels: NDArray[np.uint8], depth: str, subject: str | None) -> _Seen:
    height, width = pixels.shape[:2]
    return _Seen(
        name=name,
        label=label,
        digest=_fingerprint(pixels),
        size=f"{width}x{height}",
        channels=1 if pixels.ndim == 2 else 3,
        depth=depth,
        near_constant=not shows_something(pixels),
        subject=subject,
    )


def _from_files(plan: Plan) -> Iterator[_Seen | QuarantinedFile]:
    def use(item: Item, decoded: Decoded) -> _Seen:
        return _seen(item.name, item.label, decoded.pixels, decoded.depth, decoded.subject)

    with closing(decode_each(plan, use)) as outcomes:
        for _, outcome in outcomes:
            yield outcome


def _from_array(part: ArrayPart) -> Iterator[_Seen]:
    depth = str(part.open().dtype)
    images = array_images(part, 16)
    labels = None if part.labels is None else np.asarray(part.labels).reshape(-1)
    for what, values in (("labels", labels), ("subject ids", part.subjects)):
        if values is not None and len(values) != len(images):
            raise InvalidInputError(
                f"the {part.split} split has {len(values)} {what} for {len(images)} images",
                hint="give one for each image",
            )
    for index, image in enumerate(images):
        label = None if labels is None else int(labels[index])
        subject = None if part.subjects is None else part.subjects[index]
        yield _seen(part.image_name(index), label, plain(image), depth, subject)


class _Tally:
    """Counts and groups over all splits."""

    def __init__(self, catalogue: Catalogue, on_progress: Callable[[int], None] | None) -> None:
        self.catalogue = catalogue
        self.on_progress = on_progress or (lambda seen: None)
        self.seen = 0
        self.unreadable = list(catalogue.quarantined)
        self.num_files = self.num_volumes = 0
        self.volume_notes: list[str] = []
        self.splits: list[SplitReport] = []
        self.sizes: Counter[str] = Counter()
        self.channels: Counter[str] = Counter()
        self.depths: Counter[str] = Counter()
        self.near_constant: list[str] = []
        # digest → (split, label, name) of each image that has it
        self.groups: defaultdict[bytes, list[tuple[str, int | None, str]]] = defaultdict(list)
        self.subject_splits: defaultdict[str, set[str]] = defaultdict(set)

    def add_plan(self, plan: Plan, num_files: int) -> None:
        """Count the files and volumes of a split."""
        self.num_files += num_files
        self.num_volumes += plan.num_volumes
        self.volume_notes += [note for note in plan.notes if note not in self.volume_notes]

    def add(self, split: str, images: Iterable[_Seen | QuarantinedFile]) -> None:
        names = self.catalogue.class_names or ()
        counts = dict.fromkeys(names, 0)
        subjects: set[str] = set()
        num_images = 0
        for image in images:
            self.seen += 1
            self.on_progress(self.seen)
            if isinstance(image, QuarantinedFile):
                self.unreadable.append(image)
                continue
            num_images += 1
            if image.label is not None:
                name = names[image.label] if 0 <= image.label < len(names) else f"out of range: {image.label}"
                counts[name] = counts.get(name, 0) + 1
            self._count(split, image)
            if image.subject:
                subjects.add(image.subject)
        for subject in subjects:
            self.subject_splits[subject].add(split)
        self.splits.append(SplitReport(split, num_images, counts, len(subjects) or None))

    def _count(self, split: str, image: _Seen) -> None:
        self.sizes[image.size] += 1
        self.channels[str(image.channels)] += 1
        self.depths[image.depth] += 1
        self.groups[image.digest].append((split, image.label, image.name))
        if image.near_constant:
            self.near_constant.append(image.name)

    def report(self) -> DatasetReport:
        repeated = [group for group in self.groups.values() if len(group) > 1]
        across = [group for group in repeated if len({split for split, _, _ in group}) > 1]
        within = [group for group in repeated if max(Counter(s for s, _, _ in group).values()) > 1]
        conflicts = [group for group in repeated if len({label for _, label, _ in group}) > 1]
        names = self.catalogue.class_names or ()
        filled = {name for split in self.splits for name, count in split.class_counts.items() if count}
        return DatasetReport(
            format=self.catalogue.format,
            num_bytes=self.catalogue.num_bytes,
            class_names=names,
            splits=tuple(self.splits),
            sizes=dict(self.sizes.most_common()),
            channels=dict(self.channels.most_common()),
            depths=dict(self.depths.most_common()),
            unreadable=tuple(sorted(self.unreadable)),
            duplicates_within=_names_of(within),
            duplicates_across=_names_of(across),
            label_conflicts=_names_of(conflicts),
            near_constant=tuple(self.near_constant),
            subjects_in_two_splits=sum(len(splits) > 1 for splits in self.subject_splits.values()),
            empty_classes=tuple(name for name in names if name not in filled),
            notes=self._notes(filled),
            num_volumes=self.num_volumes,
            num_files=self.num_files and self.num_files + len(self.catalogue.quarantined),
        )

    def _notes(self, filled: set[str]) -> tuple[str, ...]:
        notes = [*self.volume_notes]
        if self.num_volumes and self.near_constant and not self.catalogue.slicing.drop_empty:
            notes.append("empty slices: drop-empty = true in volumes.toml leaves them out")
        if len(self.sizes) > 1:
            notes.append("pictures differ in size: reading needs image_size")
        if len(self.channels) > 1:
            notes.append("grey and colour pictures are mixed: reading needs channels")
        if len(filled) == 1:
            notes.append("one class only: nothing to tell apart")
        folded = Counter(name.casefold() for name in self.catalogue.class_names or ())
        if any(count > 1 for count in folded.values()):
            notes.append("class names differ only in letter case")
        return tuple(notes)


def _names_of(groups: list[list[tuple[str, int | None, str]]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(name for _, _, name in group) for group in groups)

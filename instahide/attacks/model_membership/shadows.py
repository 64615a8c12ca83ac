"""Shadow models: networks trained as the target was, on data whose membership is the attacker's choice.

Axes: M candidates, R targets, S shadow models, V encoded views of a query, K classes.

Shadow models come in pairs: a random half of the candidates goes to one, the rest to the other. So
each candidate is in exactly S/2 of them (Carlini et al. 2022, section V) and each model learns from
M/2 images. The R targets are trained in the same way on halves of their own, drawn independently;
each gives one attack, and their spread says how far one figure may be trusted.

The attacker is adaptive. If the target learnt from encodings, the shadow models learn from encodings
of their own halves, made by the real encoder under the same law and with the same public pool, with
fresh secrets; and they are asked like the target is: with the plain image, or with the mean answer
to V encoded views of it (what helps a user's accuracy helps the attacker as much).

Encodings are made once, or T times, or anew for every epoch; epoch e learns from release e mod T. Those of
the first target are kept: whoever holds them can attack them instead of the model.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoded_dataset import EncodedDataset
from ...encoder import Encoder, FewPixelsWarning
from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError, RefusedError
from ...images import ImageSet
from ...mixing import to_unit_range
from ...models import ModelSpec
from ...training_config import TrainingConfig
from ...training_device import at_most_threads
from ..cost import Cost
from .ensemble import Ensemble, EpochData
from .view import Floats, ModelView, log_odds_of_probability, right_class_log_odds

Progress = Callable[..., None]
QUERY_BLOCK = 256
GROUP_BYTES = 1 << 29
"""Of the training data of networks trained side by side."""
MAX_SIDE_BY_SIDE = 16
DEFAULT_TRAINING = TrainingConfig(epochs=30, batch_size=64, learning_rate=0.05, weight_decay=5e-4)


@dataclass(frozen=True, eq=False)
class ShadowRun:
    """Answers of R targets and S shadow models, and who was in which.

    Args:
        answers: "plain" and, if the models learnt from encodings, "encoded": (R + S, M) log-odds of
            the right class, targets first.
        members: (R + S, M) who was in the training data.
        num_targets: R.
        settings: how the models were trained.
        accuracy_inside, accuracy_outside: mean accuracy of plain queries about images the models saw
            and did not see.
        canaries: (M,) candidates with a wrong label, planted to be memorised.
        cpu_seconds: of training and asking.
        stopped_early: whether time ran out before all shadow models were trained.
        released: the T releases the first target learnt from; empty if it learnt from plain images, or
            from new ones every epoch.
    """

    answers: dict[str, Floats]
    members: NDArray[np.bool_]
    num_targets: int
    settings: dict[str, object]
    accuracy_inside: float
    accuracy_outside: float
    canaries: NDArray[np.bool_]
    cpu_seconds: float
    stopped_early: bool = False
    released: tuple[EncodedDataset, ...] = field(default=(), repr=False)
    query_kinds: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "query_kinds", tuple(self.answers))

    @property
    def num_shadows(self) -> int:
        """S."""
        return len(self.members) - self.num_targets

    def view(self, target: int = 0, *, queries: str = "plain") -> ModelView:
        """What the attacker of ``target`` sees; ``queries`` is "plain" or "encoded"."""
        if queries not in self.answers:
            raise InvalidInputError(f"no {queries} queries", hint=f"use {' or '.join(self.query_kinds)}")
        answers = self.answers[queries]
        return ModelView(answers[target], answers[self.num_targets :], self.members[self.num_targets :])

    def assumptions(self, queries: str = "plain") -> tuple[str, ...]:
        """How the models came about, in sentences."""
        if self.settings["law"] is None:
            data = "plain images"
        elif self.settings["fresh_every_epoch"]:
            data = "encodings of its images, fresh every epoch"
        else:
            count = self.settings["releases"]
            data = "encodings of its images, " + (
                "one release for all epochs" if count == 1 else f"{count} releases, one epoch after the other"
            )
        early = ("time ran out before all shadow models were trained",) if self.stopped_early else ()
        return (
            f"target and shadow models learn from {data}, with one architecture, schedule and law",
            "queries are plain images"
            if queries == "plain"
            else f"queries are {self.settings['num_views']} encoded views each, answers averaged",
            *early,
        )

    def truth(self, target: int = 0) -> NDArray[np.bool_]:
        """(M,) who was in ``target``: for scoring only."""
        return np.asarray(self.members[target], dtype=bool)


def train_shadow_models(
    candidates: ImageSet,
    *,
    num_shadows: int = 32,
    num_targets: int = 1,
    model: str = "mlp",
    training: TrainingConfig = DEFAULT_TRAINING,
    law: EncoderConfig | None = None,
    public: ImageSet | None = None,
    releases: int = 1,
    fresh_every_epoch: bool = False,
    num_views: int = 10,
    num_canaries: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> ShadowRun:
    """Train R targets and S shadow models on random halves of ``candidates`` and ask them about all.

    Args:
        candidates: M labelled images; M/2 of them train each model.
        num_shadows: S, even.
        model: an architecture of :mod:`instahide.models`; "mlp" is the fast one on a CPU.
        law: train on encodings under this law (and on |x| where it has a sign mask); ``None``: plain.
        public: pool of public images for the encodings; ``None``: the inside scheme.
        releases: T, encodings of each image.
        fresh_every_epoch: new encodings every epoch, as in published InstaHide, instead of T releases.
        num_views: V, of an encoded query.
        num_canaries: so many random candidates get a wrong label, which only a model that has seen
            them can know: the power check of the attack.
        seed: of splits, initial weights and orders. Encodings never depend on it.
        progress: called as ``progress(done, total, text)``.
        max_seconds: no further group of shadow models is started after this; what there is counts.

    Raises:
        InvalidInputError: an odd or small number of shadow models, unlabelled or too few candidates.
        RefusedError: the time was too short for the targets and four shadow models.
    """
    _check(candidates, num_shadows, num_targets, releases)
    rng = np.random.default_rng(seed)
    labelled, canaries = _with_canaries(candidates, num_canaries, rng)
    members = np.concatenate(
        [halves(len(labelled), 1, rng)[:1] for _ in range(num_targets)]
        + [halves(len(labelled), num_shadows // 2, rng)]
    )
    masked = law is not None and law.has_sign_mask
    spec = ModelSpec(model, labelled.image_shape, labelled.num_classes, absolute_input=masked)
    num_kept = 0 if law is None or fresh_every_epoch else min(releases, training.epochs)
    trainer = _Trainer(labelled, spec, training, law, public, num_kept, num_views, seed)
    groups = _groups(num_targets, num_shadows, _side_by_side(labelled, law, max(1, num_kept)))
    started, done, parts = time.perf_counter(), 0, list[dict[str, Floats]]()
    # Stacked small networks: measured 5 processor seconds on one thread, 130 on two.
    with at_most_threads(1), Cost() as cost:
        for group in groups:
            if max_seconds is not None and parts and time.perf_counter() - started > max_seconds:
                break
            parts.append(trainer.run(group, members[group], progress, len(members)))
            done = int(group[-1]) + 1
    if done < num_targets + 4:
        raise RefusedError(
            f"{max_seconds} seconds were enough for {done} models", hint="allow more time, or fewer images"
        )
    answers = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
    right = answers.pop("right") > 0
    members = members[:done]
    return ShadowRun(
        answers,
        members,
        num_targets,
        {
            "model": model,
            "num_candidates": len(labelled),
            "images_per_model": len(labelled) // 2,
            "num_shadows": done - num_targets,
            "law": None if law is None else law.to_dict(),
            "scheme": None if law is None else ("inside" if public is None else "cross"),
            "releases": num_kept,
            "fresh_every_epoch": fresh_every_epoch,
            "num_views": num_views if law is not None else 0,
            "training": training.to_dict(),
            "seed": seed,
        },
        float(right[members].mean()),
        float(right[~members].mean()),
        canaries,
        cost.cpu_seconds,
        done < num_targets + num_shadows,
        tuple(trainer.released),
    )


def halves(num_candidates: int, num_pairs: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(2·pairs, M) membership: rows 2j and 2j + 1 are complements, each with M/2 members (M even)."""
    members = np.zeros((2 * num_pairs, num_candidates), dtype=bool)
    for pair in range(num_pairs):
        chosen = rng.permutation(num_candidates)[: num_candidates // 2]
        members[2 * pair, chosen] = True
        members[2 * pair + 1] = ~members[2 * pair]
    return members


class _Trainer:
    """Trains and asks one group of networks after another."""

    def __init__(
        self,
        candidates: ImageSet,
        spec: ModelSpec,
        training: TrainingConfig,
        law: EncoderConfig | None,
        public: ImageSet | None,
        num_kept: int,
        num_views: int,
        seed: int,
    ) -> None:
        assert candidates.labels is not None
        self._candidates, self._labels = candidates, candidates.labels
        self._spec, self._training, self._law, self._public = spec, training, law, public
        self._num_kept, self._num_views, self._seed = num_kept, num_views, seed
        self.released: list[EncodedDataset] = []

    def run(
        self, group: NDArray[np.int64], members: NDArray[np.bool_], progress: Progress | None, total: int
    ) -> dict[str, Floats]:
        """Answers (size, M) of the networks numbered ``group`` about all candidates."""
        # Numbers, not the generator's state: a group trained alone gives the same networks.
        seeds = [int(np.random.SeedSequence([self._seed, int(g)]).generate_state(1)[0]) for g in group]
        ensemble = Ensemble(self._spec, seeds)
        for epoch in ensemble.train(self._data(members), self._training, seeds=seeds):
            if progress is not None:
                share = epoch / self._training.epochs
                progress(int(group[0] + share * len(group)), total, "models trained:")
        return self._ask(ensemble)

    def _data(self, members: NDArray[np.bool_]) -> EpochData:
        rows = [np.flatnonzero(row) for row in members]
        if self._law is None:
            images = torch.from_numpy(np.stack([self._candidates.images[row] for row in rows]))
            labels = torch.from_numpy(np.stack([self._labels[row] for row in rows]))
            return lambda epoch: (images, labels)
        with _few_pixels_known():
            encoders = [
                Encoder(self._law, private=self._candidates.subset(row), public=self._public) for row in rows
            ]

        def encode() -> list[EncodedDataset]:
            return [encoder.encode_epoch() for encoder in encoders]

        def stacked(epochs: list[EncodedDataset]) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.stack([e.images for e in epochs]), torch.stack([e.labels for e in epochs])

        if self._num_kept == 0:
            return lambda epoch: stacked(encode())
        kept = [encode() for _ in range(self._num_kept)]
        if not self.released:  # the first group's first network is the first target
            self.released = [release[0] for release in kept]
        fixed = [stacked(release) for release in kept]
        return lambda epoch: fixed[epoch % len(fixed)]

    def _ask(self, ensemble: Ensemble) -> dict[str, Floats]:
        blocks: dict[str, list[Floats]] = {}
        asker = self._query_encoder()
        with torch.inference_mode():
            for start in range(0, len(self._labels), QUERY_BLOCK):
                rows = np.arange(start, min(start + QUERY_BLOCK, len(self._labels)))
                batch, labels = self._candidates.subset(rows), self._labels[rows]
                scores = ensemble.scores(to_unit_range(batch.images)).numpy()
                plain = right_class_log_odds(scores, labels)
                answers = {"plain": plain, "right": (scores.argmax(-1) == labels).astype(np.float64)}
                if asker is not None:
                    answers["encoded"] = self._encoded(ensemble, asker, batch, labels)
                for kind, values in answers.items():
                    blocks.setdefault(kind, []).append(values)
        return {kind: np.concatenate(values, axis=1) for kind, values in blocks.items()}

    def _encoded(
        self, ensemble: Ensemble, asker: Encoder, batch: ImageSet, labels: NDArray[np.int64]
    ) -> Floats:
        """(size, B) log-odds of the mean probability over V fresh encodings of each query."""
        right = torch.from_numpy(labels)
        mean = torch.zeros(ensemble.size, len(labels), dtype=torch.float64)
        for view in asker.encode_views(batch, self._num_views):
            likely = ensemble.scores(view).double().softmax(dim=-1)
            mean += likely[:, torch.arange(len(labels)), right] / self._num_views
        return log_odds_of_probability(mean.numpy())

    def _query_encoder(self) -> Encoder | None:
        """Mixes queries with the public pool, or, where there is none, with other candidates."""
        if self._law is None:
            return None
        with _few_pixels_known():
            return Encoder(self._law, private=self._candidates, public=self._public)


class _few_pixels_known(warnings.catch_warnings):  # noqa: N801 (a context manager)
    """Without the encoder's warning about small images, which is for those who encode."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore", FewPixelsWarning)


def _groups(num_targets: int, num_shadows: int, size: int) -> list[NDArray[np.int64]]:
    """Numbers of the networks trained together: targets first, pairs of shadow models never parted."""
    total = num_targets + num_shadows
    first = num_targets + max(0, size - num_targets) // 2 * 2
    edges = [0, *range(first, total, size - size % 2), total]
    return [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]


def _side_by_side(candidates: ImageSet, law: EncoderConfig | None, releases: int) -> int:
    values = releases * (len(candidates) // 2) * int(np.prod(candidates.image_shape))
    return int(np.clip(GROUP_BYTES // (values * (1 if law is None else 4)), 2, MAX_SIDE_BY_SIDE))


def _with_canaries(
    candidates: ImageSet, count: int, rng: np.random.Generator
) -> tuple[ImageSet, NDArray[np.bool_]]:
    """``candidates``, an even number of them, ``count`` of which have a wrong label."""
    even = candidates.subset(np.arange(len(candidates) - len(candidates) % 2))
    assert even.labels is not None
    planted = np.zeros(len(even), dtype=bool)
    if not count:
        return even, planted
    rows = rng.choice(len(even), size=min(count, len(even)), replace=False)
    planted[rows] = True
    labels = even.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, even.num_classes, len(rows))) % even.num_classes
    return replace(even, labels=labels), planted


def _check(candidates: ImageSet, num_shadows: int, num_targets: int, releases: int) -> None:
    if candidates.labels is None or candidates.num_classes < 2:
        raise InvalidInputError("the candidates need labels of two classes or more", hint="give y with x")
    if len(candidates) < 20:
        raise InvalidInputError(f"{len(candidates)} candidates are too few", hint="give some hundred")
    if num_shadows < 4 or num_shadows % 2:
        raise InvalidInputError(f"num_shadows is {num_shadows}", hint="use an even number of at least 4")
    if num_targets < 1 or releases < 1:
        raise InvalidInputError(f"{num_targets} targets, {releases} releases", hint="use 1 or more of each")

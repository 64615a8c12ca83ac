"""Networks trained side by side, and what attacks learn from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide.attacks.model_membership import ShadowRun, model_membership, train_shadow_models
from instahide.attacks.model_membership.ensemble import Ensemble
from instahide.attacks.model_membership.shadows import _groups, halves
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError, RefusedError
from instahide.images import ImageSet
from instahide.models import ModelSpec, build_from_spec
from instahide.training import train
from instahide.training_config import TrainingConfig


def digits(count: int = 400) -> ImageSet:
    from sklearn.datasets import load_digits

    data = load_digits()
    return ImageSet((data.images[:count] / 16 * 255).astype(np.uint8), data.target[:count])


QUICK = TrainingConfig(epochs=25, batch_size=32)


@pytest.fixture(scope="module")
def plain_run() -> ShadowRun:
    return train_shadow_models(
        digits(), num_shadows=8, num_targets=2, training=QUICK, num_canaries=60, seed=1
    )


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_networks_side_by_side_are_those_trained_one_by_one(name: str) -> None:
    rng = np.random.default_rng(0)
    sets = [ImageSet(rng.integers(0, 256, (12, 8, 8), dtype=np.uint8), rng.integers(0, 3, 12)) for _ in "ab"]
    spec = ModelSpec(name, (1, 8, 8), 3)
    # A whole epoch is one batch, so the order of the images cannot differ; gradients are clipped.
    config = TrainingConfig(epochs=4, batch_size=12, learning_rate=0.5, max_gradient_norm=0.1, device="cpu")
    ensemble = Ensemble(spec, [5, 6])
    images = torch.from_numpy(np.stack([part.images for part in sets]))
    labels = torch.from_numpy(np.stack([part.labels for part in sets if part.labels is not None]))
    for _ in ensemble.train(lambda epoch: (images, labels), config, seeds=[0, 1]):
        pass
    for index, (part, seed) in enumerate(zip(sets, (5, 6), strict=True)):
        alone = build_from_spec(spec, seed)
        train(alone, part, config)
        for key, value in alone.named_parameters():
            assert torch.allclose(ensemble.parameters[key][index], value, atol=2e-5), key


def test_networks_with_running_statistics_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="batch normalisation"):
        Ensemble(ModelSpec("small-cnn", (1, 8, 8), 3, normalization="batch"), [0, 1])
    ensemble = Ensemble(ModelSpec("mlp", (1, 8, 8), 3), [0, 1])
    data = (torch.zeros(2, 4, 1, 8, 8), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="augmentation"):
        next(ensemble.train(lambda _: data, TrainingConfig(augment=True), seeds=[0, 1]))


def test_each_candidate_is_in_half_of_the_shadow_models_and_each_model_has_half() -> None:
    members = halves(30, 4, np.random.default_rng(0))
    assert (members.sum(axis=0) == 4).all()
    assert (members.sum(axis=1) == 15).all()


@pytest.mark.parametrize(("targets", "shadows", "size"), [(1, 8, 4), (3, 8, 16), (5, 6, 4), (1, 4, 2)])
def test_groups_take_every_model_once_and_part_no_pair(targets: int, shadows: int, size: int) -> None:
    groups = _groups(targets, shadows, size)
    assert np.concatenate(groups).tolist() == list(range(targets + shadows))
    assert all((int(group[0]) - targets) % 2 == 0 for group in groups[1:])


def test_members_of_an_overfitted_model_are_recognised(plain_run: ShadowRun) -> None:
    assert plain_run.accuracy_inside > plain_run.accuracy_outside + 0.05
    for target in range(2):
        result = model_membership(
            plain_run.view(target), plain_run.truth(target), canaries=plain_run.canaries
        )
        assert result.leaked
        assert result.metrics["auc"] > 0.6
        assert result.metrics["auc_lira_online"] > 0.55
        assert "auc_rmia_offline" in result.metrics
        assert "found" in result.checks["power"]
        assert "nothing found" in result.checks["null"]
        assert any("shadow models" in line for line in result.assumptions)


def test_a_model_that_saw_nobody_gives_nobody_away(plain_run: ShadowRun) -> None:
    from instahide.attacks.model_membership.attack import never_seen

    blind = never_seen(plain_run.view(), seed=3)
    result = model_membership(blind, plain_run.truth(), check=False)
    assert result.leaked is not True
    assert "recognised in" not in result.verdict or result.verdict.startswith(("Nothing", "Undecided"))


def test_without_the_truth_there_are_scores_and_no_figures(plain_run: ShadowRun) -> None:
    result = model_membership(plain_run.view())
    assert result.scores is not None
    assert result.metrics == {}
    assert result.leaked is None


def test_shadow_models_learn_from_encodings_when_the_target_does() -> None:
    law = EncoderConfig(num_mixed=2, num_private=2)
    quick = TrainingConfig(epochs=3, batch_size=32)
    run = train_shadow_models(digits(200), num_shadows=4, training=quick, law=law, num_views=2)
    assert run.query_kinds == ("plain", "encoded")
    assert run.settings["scheme"] == "inside"
    for kind in run.query_kinds:
        assert np.isfinite(run.view(queries=kind).target).all()
    assert any("one release" in line for line in run.assumptions())
    with pytest.raises(InvalidInputError, match="queries"):
        run.view(queries="blurred")


def test_the_encodings_the_target_learnt_from_are_kept() -> None:
    law = EncoderConfig(num_mixed=2, num_private=2, mode="mixup")
    quick = TrainingConfig(epochs=3, batch_size=32)
    run = train_shadow_models(digits(60), num_shadows=4, training=quick, law=law, releases=2, num_views=1)
    assert [len(release) for release in run.released] == [30, 30]
    assert not torch.equal(run.released[0].images, run.released[1].images)
    assert any("2 releases" in line for line in run.assumptions())
    # Without a mask a mixture is the mean of its sources: members alone span the encodings.
    members = torch.from_numpy(digits(60).images[run.truth()]).flatten(1).double() / 127.5 - 1
    for release in run.released:
        encodings = release.images.flatten(1).double()
        explained = members.T @ torch.linalg.lstsq(members.T, encodings.T).solution
        assert float((explained.T - encodings).abs().max()) < 1e-2
    fresh = train_shadow_models(
        digits(60), num_shadows=4, training=quick, law=law, fresh_every_epoch=True, num_views=1
    )
    assert fresh.released == ()


def test_one_seed_gives_the_same_models_and_says_who_was_in_them() -> None:
    quick = TrainingConfig(epochs=1, batch_size=32)
    first, second = (train_shadow_models(digits(60), num_shadows=4, training=quick, seed=7) for _ in range(2))
    assert np.array_equal(first.answers["plain"], second.answers["plain"])
    assert np.array_equal(first.members, second.members)


def test_time_that_runs_out_leaves_fewer_shadow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from instahide.attacks.model_membership import shadows

    monkeypatch.setattr(shadows, "MAX_SIDE_BY_SIDE", 6)
    quick = TrainingConfig(epochs=1, batch_size=32)
    run = train_shadow_models(digits(60), num_shadows=12, training=quick, max_seconds=0.0)
    assert run.num_shadows == 4
    assert run.stopped_early
    monkeypatch.setattr(shadows, "MAX_SIDE_BY_SIDE", 2)
    with pytest.raises(RefusedError, match="enough"):
        train_shadow_models(digits(60), num_shadows=12, training=quick, max_seconds=0.0)


def test_unfit_candidates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="labels"):
        train_shadow_models(ImageSet(digits(60).images))
    with pytest.raises(InvalidInputError, match="num_shadows"):
        train_shadow_models(digits(60), num_shadows=5)
    with pytest.raises(InvalidInputError, match="too few"):
        train_shadow_models(digits(10))

from __future__ import annotations

import pytest

from instahide.attacks.update_inversion import Defence
from instahide.attacks.update_inversion.benchmark import Case, capture_case, default_cases, leak_table
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

from .inversion_examples import blotches

PLAN = (("batch_size", 2), ("learning_rate", 0.05), ("momentum", 0.9))
CASES = [
    Case(network="mlp", num_images=3),
    Case(network="mlp", num_images=2, encoding=EncoderConfig(num_mixed=4)),
    Case(network="mlp", num_images=4, kind="update", plan=PLAN),
    Case(network="mlp", num_images=1, defence=Defence(num_sites=3)),
]


def test_a_table_has_a_row_for_each_case_and_these_all_leak_wholly() -> None:
    images, public = blotches(80, seed=1), blotches(100, seed=2)
    table = leak_table(CASES, images, public=public, repetitions=2, seed=5)
    assert [row["case"] for row in table] == [case.name for case in CASES]
    for row in table:
        assert row["exact_share"] == row["verified_share"] == 1.0
        assert row["believed"] == [True, True]
        assert row["baseline_ssim"] < 0.6 < row["mean_ssim"]


def test_the_images_of_all_sites_are_behind_an_aggregate() -> None:
    view, inputs, labels = capture_case(CASES[3], blotches(80, seed=1), public=blotches(9, seed=2), seed=0)
    assert view.num_images == len(inputs) == len(labels) == 3
    assert view.defence.num_sites == 3


def test_encoded_cases_hold_encodings_and_no_images() -> None:
    images = blotches(80, seed=1)
    view, _, labels = capture_case(CASES[1], images, public=images, seed=0)
    assert view.sign_masked
    assert ((labels > 0).sum(1) >= 1).all()
    assert labels.sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_every_case_of_the_bench_has_its_own_name() -> None:
    names = [case.name for case in default_cases()]
    assert len(set(names)) == len(names)


def test_images_without_labels_are_refused() -> None:
    bare = ImageSet(blotches(10, seed=1).images)
    with pytest.raises(InvalidInputError, match="no labels"):
        capture_case(CASES[0], bare, public=bare, seed=0)

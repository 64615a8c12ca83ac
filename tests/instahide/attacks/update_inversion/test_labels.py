from __future__ import annotations

import pytest
import torch

from instahide.attacks.update_inversion import LocalTraining, build_network, observe
from instahide.attacks.update_inversion.labels import (
    count_labels,
    infer_hard_labels,
    label_of_one,
    labels_from_images,
    score_gradient,
)

from .inversion_examples import K, batch


@pytest.mark.parametrize("name", ["mlp", "lenet-sigmoid", "small-cnn"])
def test_the_sign_rule_names_every_class_by_brute_force(name: str) -> None:
    images, _ = batch(1)
    model = build_network(name, image_shape=(1, 12, 12), num_classes=K)
    for label in range(K):
        view = observe(model, images, torch.eye(K)[label][None], LocalTraining(num_images=1))
        gradient = score_gradient(view)
        assert gradient is not None
        assert label_of_one(gradient) == label
        assert int((gradient < 0).sum()) == 1


def test_counts_are_those_of_the_batch_when_predictions_are_known() -> None:
    images, _ = batch(8)
    labels = torch.eye(K)[torch.tensor([0, 0, 0, 2, 2, 3, 3, 3])]
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=8))
    gradient = score_gradient(view)
    assert gradient is not None
    prediction = model(images).detach().double().softmax(1).mean(0)
    assert count_labels(gradient, prediction, 8).tolist() == [3, 0, 2, 3, 0]


def test_counts_from_other_images_are_right_at_a_fresh_network() -> None:
    images, labels = batch(5)
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=5))
    inferred = infer_hard_labels(view, batch(50, seed=9)[0])
    assert inferred is not None
    assert inferred.sum(0).tolist() == labels.sum(0).tolist()


@pytest.mark.parametrize("total", [1.0, 0.45])
def test_soft_labels_of_known_images_are_solved_for_even_if_they_do_not_sum_to_one(total: float) -> None:
    images, _ = batch(3)
    labels = total * torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 1, 0, 0], [0.2, 0, 0, 0.5, 0.3]])
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=3))
    solved = labels_from_images(view, images)
    assert solved is not None
    torch.testing.assert_close(solved.float(), labels, atol=1e-4, rtol=0)

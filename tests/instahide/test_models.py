from __future__ import annotations

import pytest
import torch

from instahide.errors import InvalidInputError
from instahide.models import MODEL_NAMES, ModelSpec, build_model, count_parameters


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_every_model_maps_images_to_class_scores(
    name: str, image_shape: tuple[int, int, int], normalization: str
) -> None:
    model = build_model(name, image_shape=image_shape, num_classes=7, normalization=normalization)
    assert model(torch.zeros(2, *image_shape)).shape == (2, 7)


@pytest.mark.parametrize("image_shape", [(1, 1, 1), (1, 5, 90), (3, 224, 224)])
def test_small_cnn_takes_any_shape_and_stays_small(image_shape: tuple[int, int, int]) -> None:
    model = build_model("small-cnn", image_shape=image_shape, num_classes=2)
    assert model(torch.zeros(1, *image_shape)).shape == (1, 2)
    assert count_parameters(model) < 300_000


def test_one_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3, initialization_seed=5)
    second = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3, initialization_seed=5)
    other = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3, initialization_seed=6)
    assert torch.equal(before, torch.get_rng_state())
    weights = [next(iter(model.parameters())) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_with_absolute_input_cannot_see_signs() -> None:
    images = torch.randn(4, 1, 8, 8)
    flipped = images * torch.where(torch.rand_like(images) < 0.5, -1.0, 1.0)
    blind = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3, absolute_input=True)
    seeing = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3)
    assert torch.equal(blind(images), blind(flipped))
    assert not torch.equal(seeing(images), seeing(flipped))


def test_absolute_input_does_not_rename_the_weights() -> None:
    """So signed and unsigned models of a federation exchange the same keys."""
    names = [
        list(
            build_model("resnet32", image_shape=(3, 32, 32), num_classes=3, absolute_input=flag).state_dict()
        )
        for flag in (False, True)
    ]
    assert names[0] == names[1]


def test_group_normalisation_has_no_running_statistics() -> None:
    for name in MODEL_NAMES:
        assert not list(build_model(name, image_shape=(3, 32, 32), num_classes=2).buffers())


def test_resnet32_has_the_published_size() -> None:
    """0.46 million parameters (He et al. 2016, table 6)."""
    model = build_model("resnet32", image_shape=(3, 32, 32), num_classes=10, normalization="batch")
    assert count_parameters(model) == pytest.approx(0.46e6, rel=0.02)


def test_a_spec_survives_its_dictionary() -> None:
    spec = ModelSpec("mlp", (1, 8, 8), 4, absolute_input=True)
    assert ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "vgg"}, "vgg"),
        ({"normalization": "layer"}, "layer"),
        ({"num_classes": 1}, "1 classes"),
        ({"image_shape": (8, 8)}, "image_shape"),
    ],
)
def test_a_wrong_description_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    arguments = {"name": "mlp", "image_shape": (1, 8, 8), "num_classes": 2} | changes
    with pytest.raises(InvalidInputError, match=named):
        build_model(**arguments)  # type: ignore[arg-type]

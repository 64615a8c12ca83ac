"""A model's weights as they travel: its floating-point tensors, float32, under state-dict names.

Integer buffers (a batch normalisation's counter) stay at home. What arrives is held against the
model this site built itself before a single number of it is copied.

The weights of round 1 are public: anyone can draw them from the plan's ``initialization-seed``. A site
that does so knows that the model it first trains was not crafted to give its images away. It says
nothing about round 2 and later: an honest model of those may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from instahide.errors import InvalidInputError, RefusedError
from instahide.models import ModelSpec, build_from_spec

from ..messages import Arrays


def check_weights(model: torch.nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise InvalidInputError unless ``arrays`` are exactly the model's floating tensors, all finite."""
    expected = {name: tuple(tensor.shape) for name, tensor in _travelling(model).items()}
    wrong = sorted(expected.keys() ^ arrays.keys())
    if wrong:
        raise InvalidInputError(
            f"the weights and the model differ in {len(wrong)} arrays, first {wrong[0]!r:.80}",
            hint="the same model and the same release are needed at the coordinator and at the sites",
        )
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise InvalidInputError(
                f"the array {name} has shape {arrays[name].shape}; this model's is {shape}",
                hint="check model, image-shape and class-names of the run",
            )
        if not np.isfinite(arrays[name]).all():
            raise InvalidInputError(f"the array {name} is not finite", hint="the run has diverged")


def check_initial_weights(
    spec: ModelSpec, initialization_seed: int, arrays: Mapping[str, NDArray[np.float32]]
) -> None:
    """Raise RefusedError unless checked ``arrays`` are the weights drawn from the public seed.

    Up to the rounding in which two machines' mathematical libraries may differ.
    """
    drawn = read_weights(build_from_spec(spec, initialization_seed))
    for name, array in drawn.items():
        if not np.allclose(arrays[name], array, rtol=1e-4, atol=1e-6):
            raise RefusedError(
                f"the array {name} of round 1 is not the one drawn from initialization-seed",
                hint="start from the seeded weights; a study that starts from others needs sites "
                "whose policies say check-initial-weights = false",
            )


def load_weights(model: torch.nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy checked ``arrays`` into the model's floating tensors."""
    with torch.no_grad():
        for name, tensor in _travelling(model).items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))


def read_weights(model: torch.nn.Module) -> Arrays:
    """The model's floating tensors as float32 arrays, in the model's order."""
    return {
        name: tensor.detach().to("cpu", torch.float32).numpy().copy()
        for name, tensor in _travelling(model).items()
    }


def _travelling(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}

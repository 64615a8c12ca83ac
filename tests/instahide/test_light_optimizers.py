"""The same updates as torch's own step, without loading its compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from instahide.light_optimizers import spare_the_compiler, take_step

MAKERS = {
    "sgd": lambda p: torch.optim.SGD([p], lr=0.1),
    "sgd, momentum and decay": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW([p], lr=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
def test_ten_steps_give_the_same_weights_bit_for_bit(name: str) -> None:
    start = torch.linspace(-1, 1, 7)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    light, plain = MAKERS[name](ours), MAKERS[name](theirs)
    for _ in range(10):
        for parameter, optimizer in ((ours, light), (theirs, plain)):
            optimizer.zero_grad()
            parameter.pow(4).sum().backward()
        take_step(light)
        plain.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)


def test_training_loads_no_compiler() -> None:
    program = (
        "import sys, numpy as np\n"
        "from instahide.images import ImageSet\n"
        "from instahide.models import build_model\n"
        "from instahide.training import train\n"
        "from instahide.training_config import TrainingConfig\n"
        "images = ImageSet(np.arange(128, dtype=np.uint8).reshape(2, 8, 8), np.array([0, 1]))\n"
        "for name in ('sgd', 'adamw'):\n"
        "    model = build_model('mlp', image_shape=(1, 8, 8), num_classes=2)\n"
        "    train(model, images, TrainingConfig(epochs=2, optimizer=name, device='cpu'))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_asking_twice_changes_nothing() -> None:
    spare_the_compiler()
    spare_the_compiler()
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    parameter.sum().backward()
    take_step(optimizer)
    assert torch.equal(parameter.detach(), torch.full((2,), 0.5))

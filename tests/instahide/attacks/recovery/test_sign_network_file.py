from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instahide.attacks.recovery.sign_network_file import load_sign_network, save_sign_network
from instahide.attacks.recovery.sign_recovery import SignNetwork, sign_recovery
from instahide.errors import IntegrityError


def test_a_stored_network_gives_the_same_signs(tmp_path: Path) -> None:
    network = SignNetwork(3).eval()
    save_sign_network(network, tmp_path / "signs.safetensors")
    again = load_sign_network(tmp_path / "signs.safetensors")
    sizes = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(sign_recovery(sizes, again).mean, sign_recovery(sizes, network).mean)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"not a network at all")
    for name in ("other", "missing"):
        with pytest.raises(IntegrityError, match="not a sign network"):
            load_sign_network(tmp_path / name)

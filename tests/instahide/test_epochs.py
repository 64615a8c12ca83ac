"""Fresh encodings while the budget lasts, then the last one again, across restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instahide import epochs
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.epochs import STATE_FILE, EncodedEpochs
from instahide.errors import IntegrityError, InvalidInputError, RefusedError
from instahide.exposure import RELEASED, THROUGH_UPDATES, ExposureLedger

from .encoded_examples import everything_in, private_images

IMAGES = private_images()


@pytest.fixture
def ledger(tmp_path: Path) -> ExposureLedger:
    return ExposureLedger(tmp_path / "ledger.sqlite3")


def encoder(**law: object) -> Encoder:
    return Encoder(EncoderConfig(**law), private=IMAGES)  # type: ignore[arg-type]


def own_uses(ledger: ExposureLedger, kind: str = THROUGH_UPDATES) -> set[int]:
    return set(ledger.counts(IMAGES, kind=kind).own.tolist())


def different(handed_out: list[torch.Tensor]) -> int:
    return len({images.numpy().tobytes() for images in handed_out})


def test_by_default_one_encoding_serves_every_epoch_and_is_charged_once(ledger: ExposureLedger) -> None:
    source = EncodedEpochs(encoder(), IMAGES, ledger=ledger)
    assert different([source.next_epoch().images for _ in range(5)]) == 1
    assert own_uses(ledger) == {1}
    assert set(ledger.counts(IMAGES, kind=THROUGH_UPDATES).partner.tolist()) == {3}
    assert own_uses(ledger, RELEASED) == {0}


@pytest.mark.parametrize("charged", [True, False])
def test_a_larger_budget_gives_fresh_encodings_first(ledger: ExposureLedger, charged: bool) -> None:
    source = EncodedEpochs(encoder(), IMAGES, ledger=ledger if charged else None, max_fresh=3)
    handed_out = [source.next_epoch().images for _ in range(6)]
    assert different(handed_out[:3]) == 3
    assert different(handed_out[2:]) == 1
    assert source.num_fresh == 3
    assert own_uses(ledger) == ({3} if charged else {0})


def test_without_a_limit_every_epoch_is_fresh_and_counted(ledger: ExposureLedger) -> None:
    source = EncodedEpochs(encoder(mode="compat"), IMAGES, ledger=ledger, max_fresh=None)
    assert different([source.next_epoch().images for _ in range(4)]) == 4
    assert own_uses(ledger) == {4}


def test_after_a_restart_without_a_folder_the_budget_is_used_up(ledger: ExposureLedger) -> None:
    EncodedEpochs(encoder(), IMAGES, ledger=ledger).next_epoch()
    with pytest.raises(RefusedError, match="budget of 1"):
        EncodedEpochs(encoder(), IMAGES, ledger=ledger).next_epoch()


def test_what_others_used_up_ends_the_fresh_ones_without_an_error(ledger: ExposureLedger) -> None:
    source = EncodedEpochs(encoder(), IMAGES, ledger=ledger, max_fresh=2)
    first = source.next_epoch()
    ledger.reserve(IMAGES, kind=THROUGH_UPDATES, max_own_uses=2)
    assert source.next_epoch() is first


def test_a_kept_encoding_survives_a_restart_at_no_further_charge(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    first = EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    restarted = EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept")
    again = restarted.next_epoch()
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels, first.labels)
    assert restarted.num_fresh == 1
    assert own_uses(ledger) == {1}


def test_only_the_current_encoding_is_kept_and_only_for_its_owner(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    source = EncodedEpochs(encoder(), IMAGES, ledger=ledger, max_fresh=3, folder=tmp_path / "kept")
    for _ in range(3):
        source.next_epoch()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["epoch-3", STATE_FILE]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "kept").rglob("*"))


def test_a_kill_after_the_charge_and_before_the_encoding_is_kept_costs_nothing(
    tmp_path: Path, ledger: ExposureLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "save_encoded", killed)
    with pytest.raises(KeyboardInterrupt):
        EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    monkeypatch.undo()
    EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    assert own_uses(ledger) == {1}


def test_a_folder_kept_for_other_data_or_another_law_is_refused(
    tmp_path: Path, ledger: ExposureLedger
) -> None:
    EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    others = private_images(seed=3)
    with pytest.raises(InvalidInputError, match="other images"):
        EncodedEpochs(
            Encoder(EncoderConfig(), private=others), others, ledger=ledger, folder=tmp_path / "kept"
        )
    with pytest.raises(InvalidInputError, match="another law"):
        EncodedEpochs(encoder(num_mixed=3), IMAGES, ledger=ledger, folder=tmp_path / "kept")


def test_a_damaged_keep_is_named(tmp_path: Path, ledger: ExposureLedger) -> None:
    EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    shard = tmp_path / "kept" / "epoch-1" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match=shard.name):
        EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept")
    (tmp_path / "kept" / STATE_FILE).write_text("[]")
    with pytest.raises(IntegrityError, match=STATE_FILE):
        EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="max_fresh is 0"):
        EncodedEpochs(encoder(), IMAGES, max_fresh=0)
    with pytest.raises(InvalidInputError, match="not charged"):
        EncodedEpochs(encoder(), IMAGES, folder=tmp_path)


def test_no_plain_pixels_are_kept(tmp_path: Path, ledger: ExposureLedger) -> None:
    EncodedEpochs(encoder(), IMAGES, ledger=ledger, folder=tmp_path / "kept").next_epoch()
    written = everything_in(tmp_path)
    assert all(image.tobytes()[:16] not in written for image in IMAGES.images)

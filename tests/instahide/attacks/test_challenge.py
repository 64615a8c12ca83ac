from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks import challenge
from instahide.attacks.challenge import Tier, make_challenge, open_truth, read_key, score_answer
from instahide.encoder_config import EncoderConfig
from instahide.errors import IntegrityError, InvalidInputError
from instahide.images import ImageSet


def pictures(count: int, seed: int) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 1), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count) % 2)


@pytest.fixture(params=[None, 8], ids=["float32", "8 bits"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small challenge: 10 images, 3 encodings of each, k = 4 with two public."""
    law = EncoderConfig(num_mixed=4, mode="compat", quantization_bits=request.param)
    monkeypatch.setitem(challenge.TIERS, "small", Tier(10, 3, law, True, "small"))
    make_challenge("small", pictures(10, 0), pictures(40, 1), tmp_path / "out")
    return tmp_path / "out"


def key_of(made: Path) -> bytes:
    return read_key(made / "opening-key.txt")


def test_the_key_opens_a_truth_that_the_encodings_come_from(made: Path) -> None:
    truth = open_truth(made / "public", key_of(made))
    assert np.array_equal(truth.images.images, pictures(10, 0).images)
    assert truth.private_rows.shape == (30, 2)
    assert np.bincount(truth.private_rows[:, 0]).tolist() == [3] * 10


def test_a_perfect_answer_scores_as_perfect(made: Path) -> None:
    perfect = pictures(10, 0).images.astype(float) / 127.5 - 1
    scores = score_answer(made / "public", key_of(made), perfect[::-1])
    assert scores["mean_ssim"] == pytest.approx(1.0)
    assert scores["leaderboard_2020"]["max_ssim"] == pytest.approx(1.0)


def test_nothing_published_holds_the_truth_or_the_key(made: Path) -> None:
    published = b"".join(path.read_bytes() for path in (made / "public").iterdir())
    assert key_of(made) not in published
    assert key_of(made).hex().encode() not in published
    image = pictures(10, 0).images[0].tobytes()
    assert not any(image[start : start + 24] in published for start in range(0, len(image) - 24, 24))


def test_the_key_is_for_its_owner_only(made: Path) -> None:
    assert (made / "opening-key.txt").stat().st_mode & 0o777 == 0o600


def test_another_key_is_refused(made: Path) -> None:
    with pytest.raises(IntegrityError, match="not the key that was committed to"):
        open_truth(made / "public", bytes(32))


@pytest.mark.parametrize("name", ["encoded.npz", "public.npz", "sealed-truth.bin"])
def test_a_changed_file_is_found(made: Path, name: str) -> None:
    path = made / "public" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{name} is not the published file"):
        open_truth(made / "public", key_of(made))


def test_a_maker_who_swaps_an_encoding_is_found_even_with_matching_hashes(made: Path) -> None:
    folder = made / "public"
    with np.load(folder / "encoded.npz") as file:
        encodings, labels = file["encodings"].copy(), file["labels"]
    encodings[[0, 1]] = encodings[[1, 0]]
    np.savez(folder / "encoded.npz", encodings=encodings, labels=labels)
    document = json.loads((folder / "challenge.json").read_text())
    document["files"]["encoded.npz"] = challenge._sha256(folder / "encoded.npz")
    (folder / "challenge.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="do not come from the sealed images"):
        open_truth(folder, key_of(made))


def test_bad_calls_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no tier 'easy'"):
        make_challenge("easy", pictures(10, 0), None, tmp_path)
    with pytest.raises(InvalidInputError, match="has 100 private images, not 10"):
        make_challenge("once", pictures(10, 0), None, tmp_path)
    with pytest.raises(InvalidInputError, match="mixes in public images"):
        make_challenge("once", pictures(100, 0), None, tmp_path)
    (tmp_path / "used").write_text("")
    with pytest.raises(InvalidInputError, match="is not empty"):
        make_challenge("once", pictures(100, 0), pictures(50, 1), tmp_path)
    (tmp_path / "key").write_text("abc")
    with pytest.raises(InvalidInputError, match="holds no key"):
        read_key(tmp_path / "key")


def test_every_tier_can_be_encoded_as_it_stands(tmp_path: Path) -> None:
    for name, tier in challenge.TIERS.items():
        if tier.releases > 1:
            continue  # the same encoder, more often
        count = tier.num_private_images
        document = make_challenge(name, pictures(count, 0), pictures(60, 1), tmp_path / name)
        assert document["tier"] == name
        open_truth(tmp_path / name / "public", read_key(tmp_path / name / "opening-key.txt"))

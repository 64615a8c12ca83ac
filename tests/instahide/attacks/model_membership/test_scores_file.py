"""Numbers of somebody else's models, read from one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.model_membership import read_scores_file
from instahide.attacks.model_membership.scores_file import write_scores_file
from instahide.attacks.model_membership.view import ModelView, right_class_log_odds
from instahide.errors import InvalidInputError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 10)
MEMBERS = np.arange(6)[:, None] % 2 == np.arange(10) % 2


def test_logits_and_probabilities_tell_the_same(tmp_path: Path) -> None:
    target, shadows = RNG.normal(size=(10, 4)), RNG.normal(size=(6, 10, 4))

    def right(scores: np.ndarray) -> np.ndarray:
        softmax = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return softmax[..., np.arange(10), LABELS]

    np.savez(
        tmp_path / "l.npz", target_logits=target, shadow_logits=shadows, labels=LABELS, shadow_members=MEMBERS
    )
    np.savez(
        tmp_path / "p.npz", target_probabilities=right(target), shadow_probabilities=right(shadows),
        shadow_members=MEMBERS, is_member=np.arange(10) < 5,
    )  # fmt: skip
    by_logits, no_truth = read_scores_file(tmp_path / "l.npz")
    by_probabilities, truth = read_scores_file(tmp_path / "p.npz")
    assert by_logits.target == pytest.approx(by_probabilities.target)
    assert by_logits.shadows == pytest.approx(by_probabilities.shadows)
    assert no_truth is None
    assert truth is not None
    assert truth.sum() == 5


def test_several_queries_of_a_candidate_keep_their_place(tmp_path: Path) -> None:
    target, shadows = RNG.normal(size=(10, 3, 4)), RNG.normal(size=(6, 10, 3, 4))
    file = tmp_path / "q.npz"
    np.savez(file, target_logits=target, shadow_logits=shadows, labels=LABELS, shadow_members=MEMBERS)
    view, _ = read_scores_file(file)
    for query in range(3):
        assert view.target[:, query] == pytest.approx(right_class_log_odds(target[:, query], LABELS))
        assert view.shadows[:, :, query] == pytest.approx(right_class_log_odds(shadows[:, :, query], LABELS))


def test_a_view_that_was_written_is_read_back(tmp_path: Path) -> None:
    view = ModelView(RNG.normal(size=10) * 20, RNG.normal(size=(6, 10)) * 20, MEMBERS)
    write_scores_file(tmp_path / "v.npz", view, np.arange(10) < 4)
    again, truth = read_scores_file(tmp_path / "v.npz")
    assert again.target == pytest.approx(view.target)
    assert again.shadows == pytest.approx(view.shadows)
    assert truth is not None
    assert truth.sum() == 4


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"target_logits": np.zeros((10, 4))}, "shadow_members"),
        ({"shadow_members": MEMBERS, "target_logits": np.zeros((10, 4))}, "neither target"),
        ({"shadow_members": MEMBERS, "target_probabilities": np.full(10, 1.5)}, "not in"),
        ({"shadow_members": MEMBERS, "target_probabilities": np.full(10, np.nan)}, "not in"),
    ],
)
def test_a_file_without_what_is_needed_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=complaint):
        read_scores_file(tmp_path / "x.npz")


def test_what_is_no_file_of_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("scores")
    with pytest.raises(InvalidInputError, match="not an"):
        read_scores_file(tmp_path / "x.npz")

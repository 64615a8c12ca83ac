"""The published experiments at sizes that take seconds, and what must come out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from theory_modules.deep_matrix_factorization import FactorizationInputError
from theory_modules.matrix_completion_curves import completion_curve, sensing_curve
from theory_modules.matrix_completion_experiments import EXPERIMENTS, main, run_experiment
from theory_modules.matrix_completion_movielens import movielens, read_ratings
from theory_modules.matrix_completion_norm_blow_up import norm_blow_up, product, velocity


def test_depth_three_beats_depth_two_beats_the_nuclear_norm_when_entries_are_few():
    rows = completion_curve(size=60, rank=3, counts=[900], seeds=[0, 1], scale=1e-4, depths=[2, 3])
    errors = {row.method: np.median(row.errors) for row in rows}
    assert errors["depth 3"] < errors["depth 2"] < errors["nuclear"]
    assert all(row.converged == 2 for row in rows)


def test_sensing_runs_every_method_on_the_same_measurements():
    rows = sensing_curve(size=12, rank=1, counts=[100], seeds=[0], scale=1e-3, depths=[3])
    assert [row.method for row in rows] == ["depth 3", "nuclear"]
    assert all(row.errors[0] < 1e-3 and row.converged == 1 for row in rows)


def test_the_command_prints_a_table_and_saves_a_picture(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "curve.png"
    main(
        ["--experiment", "rank5", "--size", "20", "--counts", "300", "400", "--seeds", "1", "--depths", "3",
         "--out", str(out)]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.count("depth 3") == 2
    assert "effective rank" in printed.out
    assert "300 entries, depth 3" in printed.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_programs_are_given_what_people_are_shown():
    found = run_experiment("rank5", size=20, counts=[300], seeds=1, depths=[3])
    assert [row["method"] for row in found.values] == ["depth 3", "nuclear"]
    assert found.values[0]["errors"][0] < 1e-3
    assert len(found.lines) == 2


@pytest.mark.parametrize("wrong", [{"experiment": "rank6"}, {"seeds": 0}, {"size": 1}, {"counts": [0]}])
def test_an_impossible_experiment_is_refused(wrong):
    with pytest.raises(ValueError, match=r"choose from|give"):
        run_experiment(**({"experiment": EXPERIMENTS[0], "seeds": 1, "counts": [5]} | wrong))


def test_movielens_needs_the_users_own_copy(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--experiment", "movielens"])
    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [3, 4])
def test_norms_blow_up_at_least_as_fast_as_the_bound(depth):
    found = norm_blow_up(depth)
    assert found.sign_lost_at is None
    assert len(found.losses) == 3
    assert (found.corners >= found.bounds).all()
    assert found.corners[-1] > 20
    assert found.effective_ranks[-1] < 1.1


def test_from_a_negative_determinant_nothing_blows_up():
    found = norm_blow_up(3, positive_determinant=False)
    assert len(found.losses) == 3
    assert found.corners.max() < 1


def test_at_depth_two_the_run_blows_up_or_owns_up_to_a_lost_sign():
    found = norm_blow_up(2, levels=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5))
    assert (found.corners >= found.bounds).all()
    assert found.sign_lost_at is not None or len(found.losses) == 5


def test_the_velocity_is_the_gradient_of_the_loss():
    layers = np.random.default_rng(0).standard_normal((3, 2, 2))

    def loss(at: np.ndarray) -> float:
        W = product(at)
        return 0.5 * ((W[0, 1] - 1) ** 2 + (W[1, 0] - 1) ** 2 + W[1, 1] ** 2)

    out, step = velocity(layers), 1e-6
    for index in np.ndindex(layers.shape):
        move = np.zeros_like(layers)
        move[index] = step
        assert -out[index] == pytest.approx(
            (loss(layers + move) - loss(layers - move)) / (2 * step), abs=1e-6
        )


def write_ratings(path: Path, rows: np.ndarray) -> None:
    path.write_text("\n".join("\t".join(str(v) for v in row) for row in rows) + "\n")


@pytest.fixture
def ratings_folder(tmp_path: Path) -> Path:
    """Sixty users and forty items in the files' format: a mean, one taste, noise, rounded to 1 .. 5."""
    rng = np.random.default_rng(0)
    scores = (
        3.3 + np.outer(rng.standard_normal(60), rng.standard_normal(40)) + 0.3 * rng.standard_normal((60, 40))
    )
    scores = np.clip(np.rint(scores), 1, 5).astype(int)
    users, items = (rng.random((60, 40)) < 0.6).nonzero()
    rows = np.stack([users + 1, items + 1, scores[users, items], 880000000 + 0 * users], axis=1)
    test = rng.random(len(rows)) < 0.2
    test[np.abs(rows[:, :2] - [60, 40]).sum(1).argmin()] = False
    write_ratings(tmp_path / "u1.base", rows[~test])
    write_ratings(tmp_path / "u1.test", rows[test])
    return tmp_path


def test_ratings_are_predicted_better_than_by_the_mean(ratings_folder: Path):
    steps: list[int] = []
    result = movielens(
        ratings_folder, hidden_width=10, max_steps=600, progress=lambda step, _: steps.append(step)
    )
    training, test = read_ratings(ratings_folder / "u1.base"), read_ratings(ratings_folder / "u1.test")
    mean_error = np.sqrt(np.square(test.values - training.values.mean()).mean())
    assert result.rmse < 0.75 * mean_error
    assert result.steps in steps
    assert result.num_training == len(training.values)


def test_rows_of_user_zero_are_left_out(tmp_path: Path):
    write_ratings(tmp_path / "r", np.array([[0, 50, 5, 1], [3, 2, 4, 1]]))
    ratings = read_ratings(tmp_path / "r")
    assert (ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist()) == ([2], [1], [4.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\t2\t3\n", "shape"), ("1\t2\t9\t0\n", "outside 1 to 5"), ("a\tb\n", "whole numbers")],
)
def test_a_file_that_is_no_rating_table_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "u1.base"
    path.write_text(text)
    with pytest.raises(FactorizationInputError, match=message):
        read_ratings(path)
    with pytest.raises(FactorizationInputError, match=r"u1\.base and u1\.test"):
        read_ratings(tmp_path / "absent")

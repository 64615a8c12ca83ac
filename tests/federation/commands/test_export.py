"""``instahide export``: files that answer like the model, where this toolkit is not installed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation import cli
from instahide.attacks.result_files import write_result
from instahide.attacks.view import AttackResult
from instahide.checkpoints import save_checkpoint, save_model
from instahide.models import build_model
from instahide.training import TrainingState
from instahide.training_config import TrainingConfig

pytest.importorskip("onnxruntime")

# Runs where none of our packages can be imported, nor those named; prints accuracies on the test images.
ELSEWHERE = """
import json, sys
folder, data, formats, hidden = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4].split(",")
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("instahide", "federation", "theory_modules", *hidden):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import numpy as np
images, labels = (np.load(data)[key] for key in ("x_test", "y_test"))
images = images[:, None]
found = {}
if "onnx" in formats:
    import onnxruntime
    session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
    found["onnx"] = session.run(["probabilities"], {"images": images})[0]
if "torch-export" in formats:
    import torch
    program = torch.export.load(folder + "/model.pt2").module()
    found["torch-export"] = program(torch.from_numpy(images))[1].detach().numpy()
if "safetensors" in formats:
    import torch
    from torch import nn
    from safetensors import safe_open
    with safe_open(folder + "/model.safetensors", framework="pt") as file:
        weights = {name.removeprefix("body."): file.get_tensor(name) for name in file.keys()}
        said = file.metadata()
    assert said["preprocessing"] == "x = (2 * images - 255) / 255 in float32, images uint8 0..255"
    def block(inputs, outputs, stride):
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers = [*block(1, 32, 1), *block(32, 64, 2), *block(64, 64, 2), nn.Flatten(), nn.Linear(576, 2)]
    network = nn.Sequential(*layers)
    assert repr(network) == said["network"], said["network"]
    network.load_state_dict(weights)
    x = (2 * torch.from_numpy(images).float() - 255) / 255
    found["safetensors"] = network.eval()(x).softmax(1).detach().numpy()
print(json.dumps({name: [float((p.argmax(1) == labels).mean()), p.tolist()] for name, p in found.items()}))
"""


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    waves = 60 * np.sin(np.arange(12)[None, :] + rng.uniform(0, 6, (count, 1)))
    images = np.where(labels[:, None, None] == 1, waves[:, :, None], waves[:, None, :])
    noisy = images + rng.normal(128, 60, (count, 12, 12))
    return noisy.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.npz and run/, which `instahide train` wrote."""
    folder = tmp_path_factory.mktemp("trained")
    (x_train, y_train), (x_test, y_test) = stripes(128, 0), stripes(60, 1)
    np.savez(folder / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    words = ["--epochs", "4", "--batch-size", "16", "--num-threads", "1", "--device", "cpu"]
    words += ["--normalization", "batch", "--deterministic"]
    assert cli.run(["train", str(folder / "data.npz"), "--out", str(folder / "run"), *words]) == 0
    return folder


def export(*words: object) -> int:
    return cli.run(["export", *map(str, words)])


def answers_elsewhere(out: Path, data: Path, formats: str, hidden: str = "") -> dict[str, Any]:
    """Format → (accuracy, probabilities) in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, str(out), str(data), formats, hidden],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(trained: Path) -> float:
    """What `instahide train` measured on the same images."""
    accuracy = float(
        json.loads((trained / "run/metrics.json").read_text())["evaluation"]["plain"]["accuracy"]
    )
    assert 0.6 < accuracy < 1.0  # else a wrong scale could go unseen
    return accuracy


def test_onnx_reproduces_the_accuracy_with_neither_torch_nor_the_toolkit(trained: Path) -> None:
    out = trained / "model"
    assert export(trained / "run", "--out", out, "--to", "onnx") == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.onnx", "model_card.json", "model_card.md"]
    found = answers_elsewhere(out, trained / "data.npz", "onnx", hidden="torch,safetensors,onnx")
    assert found["onnx"][0] == measured(trained)
    card = json.loads((out / "model_card.json").read_text())
    assert card["accuracy"]["modes"]["plain query"]["accuracy"] == measured(trained)
    assert card["accuracy"]["modes"]["one encoded view"] is None
    assert card["differential-privacy"] is None
    assert card["data"]["sites"] == [
        {"name": "this machine (plain images)", "training-images": 128, "rounds": None}
    ]
    text = (out / "model_card.md").read_text()
    assert "| one encoded view | not measured |" in text
    assert "None ran, and no epsilon is stated." in text
    assert "Not measured: no attack was run" in text


@pytest.mark.slow
def test_every_format_reproduces_the_accuracy_where_the_toolkit_is_not_installed(trained: Path) -> None:
    out = trained / "all"
    assert export(trained / "run", "--out", out) == 0
    names = ["model.onnx", "model.pt2", "model.safetensors", "model_card.json", "model_card.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    found = answers_elsewhere(out, trained / "data.npz", "onnx,torch-export,safetensors")
    assert [accuracy for accuracy, _ in found.values()] == [measured(trained)] * 3
    for _, probabilities in found.values():
        np.testing.assert_allclose(probabilities, found["onnx"][1], atol=1e-5)
    card = json.loads((out / "model_card.json").read_text())
    for file in card["files"]:
        assert hashlib.sha256((out / file["name"]).read_bytes()).hexdigest() == file["sha256"]
    assert 'torch.export.load("model.pt2")' in (out / "model_card.md").read_text()


def test_attacks_that_were_run_stand_in_the_card(trained: Path, tmp_path: Path, capsys: Any) -> None:
    result = AttackResult(
        "membership",
        {"auc": 0.75},
        {"auc": (0.7, 0.8)},
        1.0,
        (),
        verdict="Known images | were <b>recognised</b>.",
        leaked=True,
    )
    write_result(result, tmp_path / "attacks" / "one", attack="membership")
    capsys.readouterr()
    words = ("--out", tmp_path / "model", "--to", "safetensors", "--audit", tmp_path / "attacks")
    assert export(trained / "run", *words, "--format", "json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["audit"]["verdict"] == "leaks"
    assert card["audit"]["attacks"][0]["metrics"] == {"auc": 0.75}
    text = (tmp_path / "model" / "model_card.md").read_text()
    assert "| membership | leaks | Known images / were &lt;b&gt;recognised&lt;/b&gt;. | auc 0.75 |" in text
    assert "pt2" not in text
    assert export(trained / "run", "--out", tmp_path / "b", "--audit", trained / "run") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere", "--out", "out"), "is no folder"),
        ((".", "--out", "out"), "holds no finished model"),
        (("run", "--out", "out", "--to", "tflite"), "no format 'tflite'"),
        (("run", "--out", "out", "--to", ","), "no format is named"),
        (("run", "--out", "run"), "run is in use"),
        (("run", "--out", "a/b/out"), "there is no folder"),
        (("run", "--out", "out", "--audit", "run"), "holds no attack result"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    trained: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(trained)
    before = sorted(trained.rglob("*"))
    assert export(*words, *(() if "--to" in words else ("--to", "safetensors"))) == 2
    assert message in capsys.readouterr().err
    assert sorted(trained.rglob("*")) == before


def flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_an_edited_model_or_record_is_refused(trained: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    flip(tmp_path / "run" / "model.safetensors")
    assert export(tmp_path / "run", "--out", tmp_path / "out") == 4
    assert "do not match their SHA-256" in capsys.readouterr().err
    shutil.copy(trained / "run" / "model.safetensors", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text("[]")
    assert export(tmp_path / "run", "--out", tmp_path / "out", "--to", "safetensors") == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, "No space left"), 1), (KeyboardInterrupt(), 130)]
)
def test_a_full_disk_and_ctrl_c_leave_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fails(card: Any) -> str:
        raise error

    monkeypatch.setattr("instahide.exported_card.render", fails)  # the last file; the others are there by now
    assert export(trained / "run", "--out", tmp_path / "out", "--to", "safetensors") == code
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_encodings_says_under_which_law(trained: Path, tmp_path: Path) -> None:
    words = ["--encode", "--num-mixed", "2", "--epochs", "1", "--num-threads", "1", "--device", "cpu"]
    assert cli.run(["train", str(trained / "data.npz"), "--out", str(tmp_path / "run"), *words]) == 0
    assert export(tmp_path / "run", "--out", tmp_path / "model", "--to", "safetensors") == 0
    card = json.loads((tmp_path / "model" / "model_card.json").read_text())
    assert card["encoding"]["law"]["num_mixed"] == 2
    assert card["encoding"]["law"]["scheme"].startswith("inside")
    assert card["accuracy"]["modes"]["average of several encoded views"]["num-views"] == 10
    assert "epsilon" not in json.dumps(card).lower()
    text = (tmp_path / "model" / "model_card.md").read_text()
    assert "is broken" in text
    assert text.lower().count("epsilon") == 1  # "no epsilon is stated"


def test_what_an_older_training_did_not_record_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run/model.safetensors", build_model("mlp", image_shape=(1, 4, 4), num_classes=2))
    assert export(tmp_path / "run/model.safetensors", "--out", tmp_path / "out", "--to", "safetensors") == 0
    card = json.loads((tmp_path / "out/model_card.json").read_text())
    assert (card["model"]["class_names"], card["model"]["class_names_recorded"]) == (["0", "1"], False)
    assert card["encoding"]["name"] == "not recorded"
    assert set(card["accuracy"]["modes"].values()) == {None}
    assert "Their names were not recorded" in (tmp_path / "out/model_card.md").read_text()


def test_a_training_under_way_is_no_model(trained: Path, tmp_path: Path, capsys: Any) -> None:
    model = build_model("mlp", image_shape=(1, 4, 4), num_classes=2)
    state = TrainingState(seed=0, epoch=1, step=2, optimizer={})
    save_checkpoint(tmp_path / "model.safetensors", model, TrainingConfig(), state)
    assert export(tmp_path, "--out", tmp_path / "out", "--to", "safetensors") == 2
    assert "run under way" in capsys.readouterr().err

"""The site worker as a hospital runs it: a process of its own, behind its socket."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.audit_log import SignedHead
from federation.frames import BUNDLE_KEY, Frame, FrameError, ask, receive_frame, send_frame
from federation.identity import load_identity
from federation.site.plans import APPROVED, REJECTED, PlanBook
from federation.site.worker import LEDGER_NAME, main
from instahide.exposure import THROUGH_UPDATES, ExposureLedger

from .site_examples import UNASKED, digit_images, digits, initial_weights, request, write_site

WEIGHTS = initial_weights()
START_SECONDS = 120.0
STOP_SECONDS = 30.0


class Worker:
    """A worker process over the files of ``folder``; its output goes to files beside them."""

    def __init__(self, folder: Path, *, program: tuple[str, ...] = ("-m", "federation.site.worker")) -> None:
        self.folder, self.socket = folder, folder / "run" / "w.sock"
        self.out, self.err = folder / "out.log", folder / "err.log"
        command = [sys.executable, *program, "--config", str(folder / "worker.toml")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.out.open("ab") as out, self.err.open("ab") as err:
            already = self.out.stat().st_size
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=folder)
        self.ready = self._wait_until_ready(already)

    def _wait_until_ready(self, already: int) -> dict[str, Any]:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            lines = self.out.read_bytes()[already:].splitlines()
            if lines:
                return dict(json.loads(lines[0]))
            time.sleep(0.05)
        raise AssertionError(f"the worker did not start: {self.err.read_text()}")

    def ask(
        self,
        server_round: int = 1,
        kind: str = "train",
        arrays: Any = None,
        bundle: str = "",
        **settings: Any,
    ) -> Frame:
        fields = {"config": request(server_round, kind, **settings).to_mapping(), BUNDLE_KEY: bundle}
        return ask(self.socket, Frame(kind, fields, WEIGHTS if arrays is None else arrays), timeout=60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def own_uses(self) -> set[int]:
        ledger = ExposureLedger(self.folder / "state" / LEDGER_NAME)
        return set(ledger.counts(digit_images(0, 120), kind=THROUGH_UPDATES).own.tolist())

    def texts(self) -> str:
        return self.out.read_text() + self.err.read_text()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("site")
    write_site(folder, policy=UNASKED + "max-runs = 1000\n", worker='ready-file = "ready.json"\n')
    running = Worker(folder)
    yield running
    assert running.stop() == 0


@pytest.fixture
def policy(worker: Worker) -> Iterator[Path]:
    path = worker.folder / "policy.toml"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_it_says_that_it_is_ready_on_its_output_and_in_a_file(worker: Worker) -> None:
    assert worker.ready["event"] == "ready"
    assert (worker.ready["site"], worker.ready["num-training-images"]) == ("north", 120)
    assert worker.ready["pid"] == worker.process.pid
    assert json.loads((worker.folder / "ready.json").read_text()) == worker.ready


def test_a_round_measures_trains_and_replies(worker: Worker) -> None:
    answer = worker.ask(run_name="round")
    assert answer.fields["site"]["name"] == "north"
    head = SignedHead.from_text(answer.fields["site"]["audit-head"])
    assert head.is_by(load_identity(worker.folder / "state" / "identity.key").public_line)
    metrics = answer.fields["metrics"]
    assert metrics["num-examples"] == 120
    assert {f"evaluate-accuracy-{mode}" for mode in ("plain", "one-view", "ten-views")} <= set(metrics)
    assert list(answer.arrays) == list(WEIGHTS)
    assert any(not np.array_equal(answer.arrays[name], WEIGHTS[name]) for name in WEIGHTS)


def test_an_evaluation_replies_without_weights(worker: Worker) -> None:
    answer = worker.ask(10, "evaluate", run_name="evaluation")
    assert not answer.arrays
    assert 0 <= answer.fields["metrics"]["evaluate-accuracy-plain"] <= 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_mixed": 3}, "num-mixed 3"),
        ({"encoding": "none"}, "encoded images only"),
        ({"encoding_mode": "mixup"}, "mixup"),
    ],
)
def test_what_policy_forbids_is_refused_in_words(worker: Worker, settings: dict[str, Any], said: str) -> None:
    refusal = worker.ask(run_name="forbidden", **settings).fields["refusal"]
    assert refusal["kind"] == "policy"
    assert said in refusal["reason"]


def test_without_its_policy_the_site_refuses_everything_and_with_it_serves_again(
    worker: Worker, policy: Path
) -> None:
    policy.unlink()
    refusal = worker.ask(run_name="lawless").fields["refusal"]
    assert refusal["kind"] == "policy"
    assert "refuses everything" in refusal["reason"]
    policy.write_text(UNASKED + "max-runs = 1000\n")
    assert worker.ask(run_name="lawless").arrays


def test_a_plan_is_served_once_it_is_approved_and_an_altered_bundle_is_another_plan(
    worker: Worker, policy: Path
) -> None:
    policy.write_text("max-runs = 1000\n")
    waiting = worker.ask(run_name="bundle", bundle="ab" * 32).fields["refusal"]
    assert waiting["kind"] == "approval"
    book = PlanBook(worker.folder / "state")
    book.decide(book.find("").plan, APPROVED, by="a test")
    assert worker.ask(run_name="bundle", bundle="ab" * 32).arrays
    assert worker.ask(run_name="bundle", bundle="cd" * 32).fields["refusal"]["kind"] == "approval"
    book.decide(book.find("").plan, REJECTED, by="a test")
    refusal = worker.ask(run_name="bundle", bundle="cd" * 32).fields["refusal"]
    assert refusal["kind"] == "policy"
    assert "rejected the plan" in refusal["reason"]


def test_bad_frames_and_bad_requests_leave_it_serving(worker: Worker) -> None:
    for data in (b"x", b"IHF1" + bytes(12), b"\x80\x05cposix\nsystem\n."):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(worker.socket))
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = receive_frame(connection, timeout=30)
            assert answer is not None
            assert answer.fields["refusal"]["kind"] == "error"
    bare = ask(worker.socket, Frame("train", {"config": {}}, WEIGHTS), timeout=30)
    assert "bundle-sha256" in bare.fields["refusal"]["reason"]
    nan = {name: np.full_like(array, np.nan) for name, array in WEIGHTS.items()}
    assert "not finite" in worker.ask(arrays=nan).fields["refusal"]["reason"]
    assert ask(worker.socket, Frame("status"), timeout=30).fields["status"] == {"state": "ready"}


def test_hanging_up_frees_it_for_the_next(worker: Worker) -> None:
    fields = {"config": request(run_name="long", local_epochs=1000).to_mapping(), BUNDLE_KEY: ""}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(worker.socket))
        send_frame(connection, Frame("train", fields, WEIGHTS), timeout=30)
        with pytest.raises(FrameError, match="within"):
            receive_frame(connection, timeout=0.5)
    assert worker.ask(run_name="after").arrays


def test_its_socket_is_closed_to_other_users(worker: Worker) -> None:
    assert worker.socket.stat().st_mode & 0o777 == 0o600
    assert worker.socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_worker_on_the_same_socket_is_refused(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(worker.folder / "worker.toml")]) == 3
    assert "another site worker" in capsys.readouterr().err
    assert ask(worker.socket, Frame("status"), timeout=30).fields["status"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try it as another user")
def test_another_user_of_the_machine_cannot_knock(worker: Worker) -> None:
    program = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
        "except PermissionError: print('shut')"
    )
    command = [sys.executable, "-c", program, str(worker.socket)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "shut\n"


def test_killed_it_remembers_what_was_exposed_and_stopped_it_leaves_in_order(tmp_path: Path) -> None:
    write_site(tmp_path, policy=UNASKED, worker='ready-file = "ready.json"\n')
    worker = Worker(tmp_path)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert worker.ask(1).arrays
    assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
    assert worker.socket.is_socket()  # left behind
    worker = Worker(tmp_path)
    assert worker.ask(2).arrays  # goes on with the encoding it kept
    refusal = worker.ask(3, num_mixed=5).fields["refusal"]
    assert refusal["kind"] == "budget"
    assert worker.own_uses() == {1}
    fields = {"config": request(4, local_epochs=1000).to_mapping(), BUNDLE_KEY: ""}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(worker.socket))
        send_frame(connection, Frame("train", fields, WEIGHTS), timeout=30)
        with pytest.raises(FrameError, match="within"):
            receive_frame(connection, timeout=0.5)
        assert worker.stop() == 0  # in the middle of work
    assert not worker.socket.exists()
    assert not (tmp_path / "ready.json").exists()


def test_a_wrong_configuration_is_said_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_site(tmp_path, worker="thread = 2\n")
    assert main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown key 'thread' in the worker configuration",
        "hint: did you mean 'threads'?",
    ]


# The worker, with every secret it draws written to the file of the first argument.
CANARY_PROGRAM = """
import os, sys
import instahide.randomness as randomness
catch = open(os.environ["CANARY_FILE"], "a")
real_urandom, real_init = os.urandom, randomness.Keystream.__init__
def urandom(count):
    drawn = real_urandom(count)
    if sys._getframe(1).f_globals["__name__"] == "instahide.randomness":
        print(drawn.hex(), file=catch, flush=True)
    return drawn
def init(self, key, *rest, **more):
    print(bytes(key).hex(), file=catch, flush=True)
    real_init(self, key, *rest, **more)
os.urandom, randomness.Keystream.__init__ = urandom, init
from federation.site.worker import main
sys.exit(main())
"""


def test_no_secret_path_or_subject_leaves_the_workers_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roots, salts and stream keys are caught as they are drawn, then looked for everywhere."""
    folder = tmp_path / "hidden-folder-name"
    path = write_site(folder, policy=UNASKED + "max-update-exposures = 2\n", worker="test-fraction = 0.3\n")
    _write_folder_of_subjects(folder)
    path.write_text(path.read_text().replace('"data.npz"', '"scans/table.csv"'))
    monkeypatch.setenv("CANARY_FILE", str(tmp_path / "canaries"))
    worker = Worker(folder, program=("-c", CANARY_PROGRAM))
    class_names = {"class_names": ["ill", "well"]}
    weights = initial_weights_for_two()
    replies = [
        worker.ask(1, arrays=weights, local_epochs=3, **class_names),
        worker.ask(2, arrays=weights, num_mixed=2, **class_names),
        worker.ask(2, "evaluate", arrays=weights, **class_names),
        worker.ask(3, arrays=weights, num_mixed=5, **class_names),
    ]
    (folder / "policy.toml").unlink()
    replies.append(worker.ask(4, arrays=weights, **class_names))
    assert worker.stop() == 0
    assert replies[0].arrays

    told = worker.texts() + "".join(json.dumps(reply.fields) for reply in replies)
    for word in ("hidden-folder-name", "scan-", "PATIENT", str(tmp_path), "policy.toml"):
        assert word not in told, word
    secrets = {bytes.fromhex(line) for line in (tmp_path / "canaries").read_text().split()}
    assert len(secrets) > 8
    kept = [file.read_bytes() for file in (folder / "state").rglob("*") if file.is_file()]
    kept += [array.tobytes() for reply in replies for array in reply.arrays.values()]
    everything = b"\0".join([*kept, told.encode()])
    for secret in secrets:
        for form in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")):
            assert form not in everything


def _write_folder_of_subjects(folder: Path) -> None:
    from PIL import Image

    scans = folder / "scans"
    scans.mkdir()
    images, labels = digits()
    lines = ["path,label,subject_id"]
    for number in range(100):
        Image.fromarray(images[number]).save(scans / f"scan-{number}.png")
        lines.append(f"scan-{number}.png,{'ill' if labels[number] < 5 else 'well'},PATIENT{number}")
    (scans / "table.csv").write_text("\n".join(lines) + "\n")


def initial_weights_for_two() -> Any:
    from federation.site.weights import read_weights
    from instahide.models import build_model

    return read_weights(build_model("mlp", image_shape=(1, 8, 8), num_classes=2))

"""Canary secrets: subjects, file names, pixels and keys of a hospital, looked for wherever they could leak.

A real site worker (its own process, its own socket) serves a whole run of the real coordinator:
waiting plan, approval, rounds, evaluation, refusals. Then everything that either side wrote, said or
sent is searched: both logs, both audit logs, the state folder, checkpoints, model, tables, replies,
command line, environment and temporary files.
"""

from __future__ import annotations

import base64
import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from PIL import Image
from safetensors.numpy import save_file

from federation.audit_log import SignedHead
from federation.audit_verification import compare_logs, read_log
from federation.config import RunConfig
from federation.coordinator import rounds
from federation.coordinator.grid import GridReply
from federation.frames import BUNDLE_KEY, Frame, ask
from federation.identity import create_identity, load_identity
from federation.messages import RoundRequest, SiteReply
from federation.site.plans import APPROVED, PlanBook
from federation.site.weights import read_weights
from instahide.errors import FederationError
from instahide.models import build_model

from .site.site_examples import digits, write_site
from .site.test_worker import CANARY_PROGRAM, Worker

CLASSES = ["ill", "well"]
BUNDLE = "ab" * 32
NUM_IMAGES = 100


def write_scans(folder: Path) -> list[bytes]:
    """Scans under telling names with telling subjects; the raw pixels of each."""
    (folder / "canary-folder").mkdir()
    images, labels = digits()
    with (folder / "canary-folder" / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "subject_id"])
        for number in range(NUM_IMAGES):
            Image.fromarray(images[number]).save(folder / "canary-folder" / f"canary-scan-{number}.png")
            label = CLASSES[int(labels[number] >= 5)]
            writer.writerow([f"canary-scan-{number}.png", label, f"CANARY-SUBJECT-{number}"])
    return [images[number].tobytes() for number in range(NUM_IMAGES)]


class SocketGrid:
    """The coordinator's network: every request goes straight to the worker's socket."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.replies: list[Frame] = []
        self._ready: dict[str, SiteReply] = {}

    def online_nodes(self) -> dict[int, str]:
        return {11: "first"}

    def push(self, requests: Mapping[int, RoundRequest], *, lifetime: float) -> dict[int, str]:
        [request] = requests.values()
        fields = {"config": request.to_mapping(), BUNDLE_KEY: BUNDLE}
        frame = ask(self.worker.socket, Frame(request.kind, fields, request.arrays), timeout=60)
        self.replies.append(frame)
        message_id = f"message-{len(self.replies)}"
        self._ready[message_id] = SiteReply.from_mapping(frame.fields, dict(frame.arrays))
        return {11: message_id}

    def pull(self, message_ids: Sequence[str]) -> list[GridReply]:
        ready = [one for one in message_ids if one in self._ready]
        return [GridReply(message_id=one, source=11, reply=self._ready.pop(one)) for one in ready]


def config_of(study: Path, name: str, identity_key: str, **settings: object) -> RunConfig:
    """A run directory under ``study`` for the one site, whose key is registered."""
    folder = study / name
    folder.mkdir()
    (folder / "sites.json").write_text(json.dumps({"11": {"name": "north", "identity-key": identity_key}}))
    model = build_model("mlp", image_shape=(1, 8, 8), num_classes=2)
    save_file(read_weights(model), folder / "initial.safetensors")
    given = {
        "run-name": name,
        "model": "mlp",
        "class-names": CLASSES,
        "image-shape": [1, 8, 8],
        "num-server-rounds": 2,
        "minimum-sites": 1,
        "num-views": 2,
        "batch-size": 32,
        "max-failed-rounds": 0,
        "start-deadline": 0.0,
        "run-directory": str(folder),
        "audit-folder": str(study),
    }
    return RunConfig.from_mapping(given | settings)


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(canaries, places): secrets by what they are, and everything in which none may be."""
    root = tmp_path_factory.mktemp("canaries")
    site, study, temporary = root / "site", root / "study", root / "temporary"
    for folder in (study, temporary):
        folder.mkdir()
    policy = "minimum-cohort-size = 1\nmax-update-exposures = 2\n"
    path = write_site(
        site, policy=policy, worker='test-fraction = 0.3\ncoordinator-key = "coordinator.pub"\n'
    )
    pixels = write_scans(site)
    path.write_text(path.read_text().replace('"data.npz"', '"canary-folder/table.csv"'))
    (site / "data.npz").unlink()
    (site / "coordinator.pub").write_text(create_identity(study / "identity.key").public_line)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CANARY_FILE", str(root / "drawn"))
        patched.setenv("TMPDIR", str(temporary))
        worker = Worker(site, program=("-c", CANARY_PROGRAM))
    key = load_identity(site / "state" / "identity.key")
    grid = SocketGrid(worker)
    try:
        with pytest.raises(FederationError, match="waits for this site's approval"):
            rounds.run(config_of(study, "trial", key.public_line), grid)
        book = PlanBook(site / "state")
        book.decide(book.find("").plan, APPROVED, by="the data protection officer")
        run = config_of(study, "again", key.public_line)
        with pytest.raises(FederationError):  # another name is another plan
            rounds.run(run, grid)
        book.decide(book.find("").plan, APPROVED, by="the data protection officer")
        rounds.run(run, grid)
        with pytest.raises(FederationError, match="num-mixed 2"):
            rounds.run(config_of(study, "weak", key.public_line, **{"num-mixed": 2}), grid)
        process = psutil.Process(worker.process.pid)
        places = {
            "argv": "\0".join(process.cmdline()).encode(),
            "environment": "\0".join(f"{name}={value}" for name, value in process.environ().items()).encode(),
        }
        places |= read_all(temporary, "while it runs: ")
    finally:
        assert worker.stop() == 0
    places |= {"output": worker.out.read_bytes(), "log": worker.err.read_bytes()}
    places |= {
        f"reply {number}": json.dumps(reply.fields).encode()
        + b"".join(a.tobytes() for a in reply.arrays.values())
        for number, reply in enumerate(grid.replies)
    }
    for folder in (site / "state", study, temporary):
        places |= read_all(folder, f"{folder.name}: ")
    drawn = [bytes.fromhex(line) for line in (root / "drawn").read_text().split()]
    assert len(drawn) > 8
    raw = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    canaries = {f"secret {number}": secret for number, secret in enumerate(drawn)}
    canaries |= {f"pixels of image {number}": image for number, image in enumerate(pixels)}
    canaries["identity key"] = key.private_key.private_bytes(*raw)
    canaries["coordinator's identity key"] = load_identity(study / "identity.key").private_key.private_bytes(
        *raw
    )
    return canaries, places


def read_all(folder: Path, title: str) -> dict[str, bytes]:
    """Every file below ``folder`` but the keys' own files; name and content."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "identity.key"]
    return {title + str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_no_subject_and_no_name_of_a_file_is_anywhere(
    everything: tuple[dict[str, bytes], dict[str, bytes]],
) -> None:
    _, places = everything
    for place, content in places.items():
        for word in (b"canary-scan", b"CANARY-SUBJECT", b"canary-folder", b"table.csv"):
            assert word not in place.encode() + content, (place, word)


def test_no_key_no_drawn_secret_and_no_image_is_anywhere(
    everything: tuple[dict[str, bytes], dict[str, bytes]],
) -> None:
    canaries, places = everything
    for what, secret in canaries.items():
        forms = {
            secret,
            secret.hex().encode(),
            base64.b64encode(secret).rstrip(b"="),
            base64.urlsafe_b64encode(secret).rstrip(b"="),
        }
        for place, content in places.items():
            assert not any(form in content for form in forms), (what, place)


def test_the_places_are_those_that_matter(everything: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    """A search that looks into empty or missing files would always pass."""
    _, places = everything
    for place in (
        "log",
        "argv",
        "environment",
        "state: audit.jsonl",
        "state: exposure.sqlite3",
        "state: runs.json",
        "study: audit.jsonl",
        "study: again/checkpoints/round-0002.safetensors",
        "study: again/model.safetensors",
        "study: again/events.jsonl",
        "study: again/metrics.json",
        "study: again/model_card.md",
        "reply 3",
    ):
        assert places[place], place
    assert any(place.startswith("state: plans/") for place in places)
    assert any(place.startswith("state: encodings/") for place in places)
    assert b"site worker" in places["argv"] or b"CANARY_FILE" in places["argv"]
    assert b"refused (policy)" in places["log"]
    assert b"refused (approval)" in places["log"]


def test_a_planted_canary_would_be_found(everything: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    canaries, places = everything
    planted = {**places, "planted": b"x" + canaries["identity key"].hex().encode()}
    with pytest.raises(AssertionError, match="planted"):
        test_no_key_no_drawn_secret_and_no_image_is_anywhere((canaries, planted))


def test_both_logs_agree_on_what_happened(
    everything: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    _, places = everything
    logs = []
    for name in ("state", "study"):
        (tmp_path / f"{name}.jsonl").write_bytes(places[f"{name}: audit.jsonl"])
        logs.append(read_log(tmp_path / f"{name}.jsonl"))
        assert logs[-1].problems == ()
    comparison = compare_logs(*logs)
    assert comparison.problems == ()
    # Three requests accepted with the coordinator's head; six answers, refusals among them, with the site's.
    assert comparison.heads == 3 + 6
    assert [record.event for record in logs[0].records].count("update-sent") == 2
    sent = [record.fields["update-sha256"] for record in logs[0].records if record.event == "update-sent"]
    taken = [record.fields["update-sha256"] for record in logs[1].records if "update-sha256" in record.fields]
    assert sent == taken
    head = SignedHead.from_text(next(head.to_text() for _, head in logs[1].heads()))
    assert head.log == logs[0].log_id
    assert np.all(np.diff([record.sequence for record in logs[0].records]) == 1)
    assert os.environ.get("CANARY_FILE") is None

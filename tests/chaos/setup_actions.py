"""What is made before a run: a study, its sites and runs, a node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .action import Action
from .whole_files import tensors_digest


class NewStudy(Action):
    """`coordinator init`: keys, certificates, secrets, settings."""

    names = ("127.0.0.1",)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.study import SETTINGS, create_study

        if again and (folder / "study" / SETTINGS).exists():
            return  # whole: the fault came after the last thing to do, and a second try is refused saying so
        create_study(folder / "study", names=self.names, listen="127.0.0.1", port=9443)

    def left(self, folder: Path) -> Any:
        from federation.study import load_study

        load_study(folder / "study")
        return sorted(path.name for path in (folder / "study").iterdir())


class StudyWithRun(NewStudy):
    """`admit` and the preparation of a run in a study that is there."""

    def prepare(self, folder: Path) -> None:
        super().perform(folder, False)
        for name in ("st-mary", "northside"):
            self.make_request(folder, name)

    def make_request(self, folder: Path, name: str) -> None:
        from federation.identity import load_or_create_identity
        from federation.join_signatures import RequestKeys
        from federation.joining import JoinRequest, write_request
        from federation.provisioning import create_node_key, load_node_key, public_line_of

        home = folder / name
        home.mkdir()
        node = load_node_key(create_node_key(home).private)
        keys = RequestKeys(node=node, identity=load_or_create_identity(home / "identity.key"))
        request = JoinRequest(
            name=name,
            public_key=public_line_of(node),
            identity_key=keys.identity.public_line,
            num_examples=100,
            evaluate_num_examples=20,
            class_names=("benign", "malignant"),
            image_shape=(1, 8, 8),
        )
        write_request(request, home / "request.json", keys=keys)

    def perform(self, folder: Path, again: bool) -> None:
        from federation.joining import read_request, write_answer
        from federation.study import admit, coordinator_identity, load_study, prepare_run

        study = load_study(folder / "study")
        for node_id, name in enumerate(("st-mary", "northside"), start=1):
            request = read_request(folder / name / "request.json")
            answer = admit(study, request, node_id)
            write_answer(answer, folder / name / "join.json", identity=coordinator_identity(study))
        if not study.run_names():
            prepare_run(study, {"run-name": "trial", "model": "mlp"})

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log
        from federation.joining import read_answer
        from federation.study import load_run, load_study

        study = load_study(folder / "study")
        for name in ("st-mary", "northside"):
            read_answer(folder / name / "join.json")
        return {
            "sites": sorted(site.name for site in study.sites()),
            "run": load_run(study, "trial").model,
            "weights": tensors_digest(study.run_folder("trial") / "initial.safetensors"),
            "audit problems": list(read_log(folder / "study" / "audit.jsonl").problems),
        }


class NewNode(Action):
    """`node init` and `node join`."""

    def prepare(self, folder: Path) -> None:
        from ..federation.site import site_examples as examples

        examples.write_site(folder / "data")

    def perform(self, folder: Path, again: bool) -> None:
        from federation.identity import load_or_create_identity
        from federation.joining import JoinAnswer, read_request
        from federation.node_folder import NodeFolder, create_node, join
        from federation.provisioning import create_authority

        made = NodeFolder(folder / "node")
        if not made.key.exists():
            data = folder / "data" / "data.npz"
            create_node(made.path, name="north", data=data, test_data=None, public_data=None)
        request = read_request(made.path / "north.request.json")
        outside = folder.parent / "coordinator"  # on another machine, whose disk is not full
        if not outside.exists():
            outside.mkdir()
            create_authority(outside)
        answer = JoinAnswer(
            name="north",
            coordinator="127.0.0.1:9443",
            authority=(outside / "authority.crt").read_text(),
            identity_key=load_or_create_identity(outside / "identity.key").public_line,
            fingerprint=request.fingerprint,
        )
        join(made, answer)

    def left(self, folder: Path) -> Any:
        return sorted(path.name for path in (folder / "node").iterdir())

"""A hospital exchanges its keys and another one is revoked: both sides' files, as an action of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .setup_actions import StudyWithRun


class ExchangeOfKeys(StudyWithRun):
    """`node rotate --new-identity`, `admit`, `node join`, and `revoke`."""

    def prepare(self, folder: Path) -> None:
        from federation.joining import read_request
        from federation.node_folder import NodeFolder, create_node, join
        from federation.study import admit, load_study

        from ..federation.site import site_examples as examples

        super().prepare(folder)
        study = load_study(folder / "study")
        admit(study, read_request(folder / "northside" / "request.json"), 1)
        examples.write_site(folder / "data")
        (folder / "data" / "data.npz").rename(folder / "data.npz")
        data = folder / "data.npz"
        names = [str(digit) for digit in range(10)]
        node = NodeFolder(folder / "node")
        # A study of its own classes: the other hospital's request has two.
        other = load_study(self.new_study(folder / "digits"))
        _, request, _ = create_node(
            node.path, name="west", data=data, test_data=None, public_data=None, class_names=names
        )
        join(node, admit(other, request, 2))
        self.begin_log(node.path)

    def new_study(self, path: Path) -> Path:
        from federation.study import create_study

        return create_study(path, names=("fl.example.org",), listen="0.0.0.0", port=9443).path

    def begin_log(self, node: Path) -> None:
        from federation.audit_log import AuditLog
        from federation.identity import load_identity

        (node / "state").mkdir()
        identity = load_identity(node / "identity.key")
        AuditLog(node / "state" / "audit.jsonl", identity, role="site", name="west").append("started")

    def perform(self, folder: Path, again: bool) -> None:
        from federation.joining import read_answer, read_request, write_answer
        from federation.node_folder import NodeFolder, join
        from federation.node_rotation import rotate
        from federation.revocation import revoke
        from federation.study import admit, coordinator_identity, load_study

        study, node = load_study(folder / "digits"), NodeFolder(folder / "node")
        if not again or not self.is_exchanged(folder):
            _, path = rotate(node, new_identity=True)
            answer = admit(study, read_request(path), 3)
            write_answer(answer, node.path / "west.join.json", identity=coordinator_identity(study))
            join(node, read_answer(node.path / "west.join.json"))
        revoke(load_study(folder / "study"), "northside", reason="a test")

    def is_exchanged(self, folder: Path) -> bool:
        """Whether the node uses the keys that are admitted, and none wait any more."""
        from federation.node_folder import NodeFolder
        from federation.provisioning import load_node_key, public_key_fingerprint, public_line_of
        from federation.study import load_study

        node = NodeFolder(folder / "node")
        own = public_key_fingerprint(public_line_of(load_node_key(node.key)).encode())
        [site] = load_study(folder / "digits").sites() or [None]
        waits = node.next_key.exists() or node.next_public_key.exists() or node.next_identity_key.exists()
        return site is not None and site.fingerprint == own and site.node_id == 3 and not waits

    def left(self, folder: Path) -> Any:
        from federation.audit_verification import read_log
        from federation.identity import load_identity
        from federation.study import load_study

        digits, study = load_study(folder / "digits"), load_study(folder / "study")
        [site] = digits.sites()
        node = folder / "node"
        logs = [read_log(path) for path in sorted((node / "state").glob("audit*.jsonl"))]
        return {
            "exchanged": self.is_exchanged(folder),
            "identity": site.identity_key == load_identity(node / "identity.key").public_line,
            "files": sorted(path.name for path in node.iterdir() if not path.name.startswith(".")),
            "logs put aside": len(logs),
            "events put aside": sorted({record.event for log in logs for record in log.records}),
            "left in the study": [one.name for one in study.sites()],
            "why": [sorted({entry.why for entry in one.revocations()}) for one in (digits, study)],
            "audit problems": [
                problem
                for path in (folder / "digits", folder / "study")
                for problem in read_log(path / "audit.jsonl").problems
            ]
            + [problem for log in logs for problem in log.problems],
        }

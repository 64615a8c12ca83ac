"""The shell scripts of ``deploy/``: clean by shellcheck, true to their words, and refusing what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from federation.external_certificate import ExternalCertificate
from federation.flower_processes.node import load_settings
from federation.site.worker_config import load_worker_config
from instahide.errors import InvalidInputError

from .deploy_files import DEPLOY, tool

SCRIPTS = sorted(DEPLOY.glob("*.sh"))
NAMES = ("fl.example.org", "10.0.0.5")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="files change their owners: root only")


def run(script: str, *words: object, code: int = 0, **environment: str) -> str:
    """A script's output, its errors where it fails; its exit code is the one expected."""
    command = [DEPLOY / script, *map(str, words)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        assert done.stderr.startswith("error: ")
        assert "\nhint: " in done.stderr
    return done.stdout if code == 0 else done.stderr


def openssl(*words: object) -> None:
    subprocess.run([tool("openssl"), *map(str, words)], check=True, capture_output=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it_and_it_stops_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert lines[0] == "set -euo pipefail"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "wrong.sh").write_text("#!/bin/bash\nrm $1/*\n")
    done = subprocess.run(
        [tool("shellcheck"), tmp_path / "wrong.sh"], capture_output=True, text=True, check=False
    )
    assert "SC2086" in done.stdout


class Authority:
    """A root and an intermediate of openssl's own making, that sign what is asked as hospitals' IT does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "ca.ext").write_text(
            "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        (folder / "server.ext").write_text(
            "basicConstraints=critical,CA:false\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        root, key = folder / "root.pem", folder / "root.key"
        new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        openssl(
            *new,
            "-x509",
            "-days",
            90,
            "-subj",
            "/CN=Hospital root",
            *extensions,
            "-keyout",
            key,
            "-out",
            root,
        )
        openssl(*new, "-subj", "/CN=Hospital servers", "-keyout", folder / "i.key", "-out", folder / "i.csr")
        self.root, self.intermediate = root, self._sign(folder / "i.csr", "root", "ca.ext", folder / "i.pem")

    def sign(self, request: Path) -> Path:
        return self._sign(request, "i", "server.ext", request.with_suffix(".crt"), "-copy_extensions", "copy")

    def _sign(self, request: Path, signer: str, extensions: str, out: Path, *more: str) -> Path:
        by = [
            "-CA",
            self.folder / f"{signer}.pem",
            "-CAkey",
            self.folder / f"{signer}.key",
            "-CAcreateserial",
        ]
        openssl(
            "x509",
            "-req",
            "-in",
            request,
            *by,
            "-days",
            60,
            "-extfile",
            self.folder / extensions,
            "-out",
            out,
            *more,
        )
        return out


def test_from_request_to_a_certificate_that_the_coordinator_takes(tmp_path: Path) -> None:
    authority, folder = Authority(tmp_path / "authority"), tmp_path / "gateway"
    said = run("certificates.sh", "request", folder, *NAMES)
    assert "DNS:fl.example.org,IP:10.0.0.5" in said
    key = folder / "gateway.key"
    assert key.stat().st_mode & 0o777 == 0o600
    signed, whole = authority.sign(folder / "gateway.csr"), folder / "gateway.pem"
    run("certificates.sh", "chain", whole, signed, authority.intermediate)
    assert "good for fl.example.org 10.0.0.5" in run(
        "certificates.sh", "check", whole, key, authority.root, *NAMES
    )
    ExternalCertificate(certificate=whole, key=key, authority=authority.root).check(NAMES)

    # What the script refuses, the coordinator refuses too, and the other way round.
    wrong = {
        "another name": (whole, key, authority.root, ("other.example.org",)),
        "no intermediate": (signed, key, authority.root, NAMES),
        "another authority": (whole, key, Authority(tmp_path / "other").root, NAMES),
        "another key": (whole, authority.folder / "i.key", authority.root, NAMES),
    }
    for case, (certificate, private, trusted, names) in wrong.items():
        assert run("certificates.sh", "check", certificate, private, trusted, *names, code=4), case
        with pytest.raises(InvalidInputError):
            ExternalCertificate(certificate=certificate, key=private, authority=trusted).check(names)


def test_wrong_words_are_refused_and_no_key_is_overwritten(tmp_path: Path) -> None:
    run("certificates.sh", code=2)
    run("certificates.sh", "sign", code=2)
    run("certificates.sh", "request", tmp_path / "a", code=2)
    run("certificates.sh", "request", tmp_path / "a", "https://x", code=2)
    assert not (tmp_path / "a").exists()
    run("certificates.sh", "request", tmp_path / "a", "x")
    before = (tmp_path / "a/gateway.key").read_bytes()
    assert "not overwritten" in run("certificates.sh", "request", tmp_path / "a", "x", code=2)
    assert (tmp_path / "a/gateway.key").read_bytes() == before
    assert "no PEM" in run(
        "certificates.sh", "chain", tmp_path / "out.pem", tmp_path / "a/gateway.csr", code=4
    )
    assert not (tmp_path / "out.pem").exists()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """What `node init` and `node join` leave, as far as the script reads it."""
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    (folder / "node.key").write_text("a key\n")
    (folder / "node.key").chmod(0o600)
    (folder / "authority.crt").write_text("a certificate\n")
    (folder / "node.toml").write_text(
        'name = "st-mary"\ncoordinator = "fl.example.org:9443"\nauthority = "x"\nprivate-key = "x"\n'
    )
    (folder / "worker.toml").write_text(
        'site-name = "st-mary"\ndata = "/data"\npolicy = "policy.toml"\nsocket = "state/relay/worker.sock"\n'
        'state-folder = "state"\n'
    )
    return folder


@as_root
def test_a_split_site_has_two_owners_and_settings_that_meet_at_the_socket(node: Path, tmp_path: Path) -> None:
    relay = tmp_path / "relay"
    run("split-site.sh", node, relay, "--relay-home", str(relay))
    run("split-site.sh", node, relay, "--relay-home", str(relay))  # after another join: the same again
    worker = load_worker_config(node / "worker.toml")
    assert (worker.allowed_uids, worker.socket_group) == ((10001, 10002), 10003)
    settings = load_settings(relay / "node.toml")
    assert (settings.name, settings.coordinator) == ("st-mary", "fl.example.org:9443")
    assert settings.private_key.read_text() == "a key\n"
    assert settings.authority.read_text() == "a certificate\n"
    assert str(settings.worker_socket) == "/run/instahide/worker.sock"
    folder = (node / "state/relay").stat()
    assert (folder.st_uid, folder.st_gid, folder.st_mode & 0o777) == (10001, 10003, 0o750)
    assert {path.stat().st_uid for path in relay.rglob("*")} == {10002}
    assert (relay / "node.key").stat().st_mode & 0o777 == 0o600
    assert relay.stat().st_mode & 0o777 == node.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in relay.iterdir()) == ["authority.crt", "node.key", "node.toml"]


@as_root
def test_a_split_that_would_be_none_is_refused(node: Path, tmp_path: Path) -> None:
    assert "one user" in run("split-site.sh", node, tmp_path / "r", "--relay-user", 10001, code=2)
    assert "no option" in run("split-site.sh", node, tmp_path / "r", "--relay", 1, code=2)
    assert "no such user" in run("split-site.sh", node, tmp_path / "r", "--relay-user", "nobody-here", code=2)
    (node / "node.toml").unlink()
    assert "node.toml" in run("split-site.sh", node, tmp_path / "r", code=2)
    assert not (tmp_path / "r").exists()


def test_the_first_call_of_prepare_makes_folders_and_says_what_is_missing(tmp_path: Path) -> None:
    said = run(
        "prepare-compose.sh", tmp_path / "data", INSTAHIDE_UID="12345", INSTAHIDE_GID="12345", DOCKER="false"
    )
    assert "site-3/data/training" in said
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        *("coordinator", "site-1", "site-2", "site-3")
    ]
    run("prepare-compose.sh", code=2)


@as_root
def test_containers_as_root_are_refused(tmp_path: Path) -> None:
    assert "as root" in run("prepare-compose.sh", tmp_path / "data", code=2)


def test_prepare_passes_on_the_failure_of_a_step(tmp_path: Path) -> None:
    """With a docker that fails: the script ends there with its exit code and starts nothing after."""
    environment = {"INSTAHIDE_UID": "12345", "INSTAHIDE_GID": "12345", "CALLED": str(tmp_path / "called")}
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$@" >> "$CALLED"\nexit 7\n')
    docker.chmod(0o755)
    run("prepare-compose.sh", tmp_path / "data", **environment, DOCKER=str(docker))
    (tmp_path / "data/site-2/data/training.npz").touch()
    command = [DEPLOY / "prepare-compose.sh", tmp_path / "data"]
    done = subprocess.run(command, env=os.environ | environment | {"DOCKER": str(docker)}, check=False)
    assert done.returncode == 7
    [line] = (tmp_path / "called").read_text().splitlines()
    assert line.endswith("run --rm --no-deps -T coordinator coordinator init /study --host coordinator")


def test_the_socket_folder_of_the_documents_is_the_one_in_the_files() -> None:
    text = (DEPLOY / "split-site.sh").read_text(encoding="utf-8")
    hospital = (DEPLOY / "compose.hospital.yaml").read_text(encoding="utf-8")
    assert "socket_folder=/run/instahide" in text
    assert "target: /run/instahide" in hospital

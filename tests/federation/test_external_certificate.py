"""A gateway certificate from the operator's own authority: tried before it is taken, kept at renewal."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.cli import run
from federation.doctor.checks import State
from federation.doctor.coordinator import coordinator_checks
from federation.doctor.files import read_certificate
from federation.external_certificate import ExternalCertificate, external_certificate
from federation.flower_processes.superlink import CoordinatorFolder
from federation.joining import JoinRequest
from federation.provisioning import certificate_fingerprint, create_node_key
from federation.renewal import renew_certificates
from federation.study import Study, admit, create_study
from instahide.errors import InvalidInputError

NAMES = ("fl.example.org", "10.0.0.5")
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class HospitalAuthority:
    """A root and an intermediate that signs servers, as hospitals' IT has them. RSA, unlike ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.root_key, self.key = (
            rsa.generate_private_key(65537, 2048),
            ec.generate_private_key(ec.SECP256R1()),
        )
        self.root = self._sign("root", self.root_key.public_key(), None, self.root_key, authority=True)
        self.intermediate = self._sign(
            "servers", self.key.public_key(), self.root, self.root_key, authority=True
        )
        self.root_file = self._write("root.pem", self.root)

    def issue(
        self, *, names: tuple[str, ...] = NAMES, days: int = 90, chain: bool = True, file_name: str = "server"
    ) -> ExternalCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._sign("server", key.public_key(), self.intermediate, self.key, names=names, days=days)
        certificate = self._write(f"{file_name}.pem", leaf, *([self.intermediate] if chain else []))
        return ExternalCertificate(
            certificate=certificate, key=self.write_key(key, f"{file_name}.key"), authority=self.root_file
        )

    def write_key(self, key: Key, name: str, passphrase: bytes | None = None) -> Path:
        closed = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
        (self.folder / name).write_bytes(pem)
        return self.folder / name

    def _write(self, name: str, *certificates: x509.Certificate) -> Path:
        pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)
        (self.folder / name).write_bytes(pem)
        return self.folder / name

    def _sign(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        issuer: x509.Certificate | None,
        issuer_key: Key,
        *,
        authority: bool = False,
        names: tuple[str, ...] = (),
        days: int = 900,
    ) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        end = datetime.now(UTC) + timedelta(days=days)
        builder = (
            x509.CertificateBuilder(
                issuer.subject if issuer else name, name, key, x509.random_serial_number()
            )
            .not_valid_before(end - timedelta(days=1000))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False),
                critical=True,
            )
        )
        if names:
            alternatives = [_alternative(one) for one in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())


def _alternative(name: str) -> x509.GeneralName:
    import ipaddress

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> HospitalAuthority:
    return HospitalAuthority(tmp_path_factory.mktemp("it") / "authority")


@pytest.fixture
def study(hospital: HospitalAuthority, tmp_path: Path) -> Study:
    path = tmp_path / "study"
    return create_study(path, names=NAMES, listen="127.0.0.1", port=9443, external=hospital.issue())


def look(study: Study, name: str) -> tuple[State, str, str]:
    [check] = [check for check in coordinator_checks(study) if check.name == name]
    outcome = check.look()
    return outcome.state, outcome.seen, outcome.fix


def test_a_chain_that_serves_every_name_is_taken_and_the_key_is_private(
    study: Study, hospital: HospitalAuthority
) -> None:
    folder = CoordinatorFolder(study.path)
    assert folder.gateway_authority.read_bytes() == hospital.root_file.read_bytes()
    assert folder.gateway.certificate.read_bytes() == (hospital.folder / "server.pem").read_bytes()
    assert folder.gateway.key.stat().st_mode & 0o777 == 0o600
    assert look(study, "gateway certificate")[0] is State.ok
    assert look(study, "gateway key")[0] is State.ok


def test_a_hospital_that_joins_is_told_to_trust_that_authority(
    study: Study, hospital: HospitalAuthority, tmp_path: Path
) -> None:
    from federation.identity import load_or_create_identity

    request = JoinRequest(
        name="st-mary",
        public_key=create_node_key(tmp_path / "node").public.read_text().strip(),
        identity_key=load_or_create_identity(tmp_path / "node/identity.key").public_line,
        num_examples=10,
        evaluate_num_examples=2,
        class_names=("ill", "well"),
        image_shape=(1, 8, 8),
    )
    assert admit(study, request, 7).authority == hospital.root_file.read_text()


@pytest.mark.parametrize("name", ["other.example.org", "10.0.0.6"])
def test_a_name_it_is_not_for_is_refused_and_nothing_is_made(
    hospital: HospitalAuthority, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"does not serve {name}"):
        create_study(
            tmp_path / "study", names=(*NAMES, name), listen="127.0.0.1", port=9443, external=hospital.issue()
        )
    assert not (tmp_path / "study").exists()


def test_without_its_intermediate_or_after_its_end_it_is_refused(hospital: HospitalAuthority) -> None:
    with pytest.raises(InvalidInputError, match="unable to get local issuer"):
        hospital.issue(chain=False, file_name="bare").check(NAMES)
    with pytest.raises(InvalidInputError, match="expired"):
        hospital.issue(days=-1, file_name="old").check(NAMES)


def test_another_authority_another_key_a_passphrase_and_other_files_are_refused(
    hospital: HospitalAuthority, tmp_path: Path
) -> None:
    good = hospital.issue(file_name="good")
    stranger = HospitalAuthority(tmp_path / "stranger")
    other_key = ec.generate_private_key(ec.SECP256R1())
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no PEM\n")
    cases = {
        "does not serve": replace(good, authority=stranger.root_file),
        "is not the key of": replace(good, key=hospital.write_key(other_key, "other.key")),
        "has a passphrase": replace(good, key=hospital.write_key(other_key, "closed.key", b"secret")),
        "is not a PEM private key": replace(good, key=good.certificate),
        "holds no PEM certificate": replace(good, certificate=nothing),
        "cannot be read": replace(good, authority=tmp_path / "missing.pem"),
    }
    for message, files in cases.items():
        with pytest.raises(InvalidInputError, match=message):
            files.check(NAMES)


def test_three_files_or_none() -> None:
    assert external_certificate(None, None, None) is None
    with pytest.raises(InvalidInputError, match="three files"):
        external_certificate(Path("a"), None, Path("b"))


def test_renewal_leaves_it_alone_and_renews_the_loopback_certificate(study: Study) -> None:
    folder = CoordinatorFolder(study.path)
    gateway, superlink = folder.gateway.certificate.read_bytes(), folder.superlink.certificate.read_bytes()
    renew_certificates(study)
    assert folder.gateway.certificate.read_bytes() == gateway
    assert folder.superlink.certificate.read_bytes() != superlink


def test_the_next_one_from_there_takes_its_place_and_the_old_pair_is_kept(
    study: Study, hospital: HospitalAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = CoordinatorFolder(study.path)
    old = {folder.gateway.certificate.read_bytes(), folder.gateway.key.read_bytes()}
    files = hospital.issue(days=300, file_name="next")
    words = ["coordinator", "renew", str(study.path), "--certificate-file", str(files.certificate)]
    words += ["--key-file", str(files.key), "--ca-file", str(files.authority), "--format", "json"]
    assert run(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["hospitals-join-again"] is False
    assert said["authority-sha256"] == certificate_fingerprint(hospital.root_file)
    assert folder.gateway.certificate.read_bytes() == files.certificate.read_bytes()
    kept = {path.read_bytes() for path in study.path.glob("gateway.until-*")}
    assert kept == old
    assert look(study, "gateway certificate")[0] is State.ok


def test_an_ordinary_study_can_change_over_and_says_that_hospitals_join_again(
    hospital: HospitalAuthority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = create_study(tmp_path / "study", names=NAMES, listen="127.0.0.1", port=9443)
    files = hospital.issue(file_name="change")
    words = ["coordinator", "renew", str(made.path), "--certificate-file", str(files.certificate)]
    assert run([*words, "--key-file", str(files.key), "--ca-file", str(files.authority)]) == 0
    assert "send each hospital its join file" in capsys.readouterr().out
    assert CoordinatorFolder(made.path).gateway_authority.name == "gateway-authority.crt"


def test_the_doctor_says_when_it_ends_and_what_to_do(hospital: HospitalAuthority, tmp_path: Path) -> None:
    soon = hospital.issue(days=10, file_name="soon")
    made = create_study(tmp_path / "study", names=NAMES, listen="127.0.0.1", port=9443, external=soon)
    state, seen, fix = look(made, "gateway certificate")
    assert state is State.warning
    assert "in 9 days" in seen
    assert "--certificate-file" in fix
    (made.path / "gateway-authority.crt").write_bytes((made.path / "authority.crt").read_bytes())
    state, seen, fix = look(made, "gateway certificate")
    assert state is State.failed
    assert "does not serve fl.example.org" in seen


def test_a_node_meets_the_same_certificate_over_a_real_socket(study: Study) -> None:
    """The handshake in memory against one over TCP, with the default checks of this Python."""
    import socket
    import threading

    folder = CoordinatorFolder(study.path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder.gateway.certificate, folder.gateway.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain, server.wrap_socket(plain, server_side=True) as secured:
                secured.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = ssl.create_default_context(cafile=str(folder.gateway_authority))
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client.wrap_socket(plain, server_hostname=NAMES[0]) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            secured.send(b"x")
        thread.join(5.0)
    from cryptography.hazmat.primitives.serialization import Encoding

    assert shown == read_certificate(folder.gateway.certificate).public_bytes(Encoding.DER)

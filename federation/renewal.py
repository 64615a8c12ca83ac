"""New server certificates for a study whose authority stays, so that no hospital has to join again;
and a new authority, for which every hospital takes in a new join file.

The gateway's certificate is for the names in ``study.toml``: a name added there is in the new one.
One from an authority of the operator's own is replaced by the next one from there, never by ours.
Old keys and certificates are kept beside the new ones, under the date of the change; of an old
authority the certificate only.

A new authority is for the day when the old one's key may have been seen, or when it ends (ten years).
All join files are written at once (``joins/NAME.join.json``), signed by the coordinator's identity
key, which the hospitals know: they need not telephone. Until a hospital has taken its file in, it
does not trust the restarted coordinator and is out.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from .coordinator.audit import open_audit_log
from .external_certificate import ExternalCertificate
from .flower_processes.superlink import LOOPBACK, CoordinatorFolder
from .joining import write_answer
from .provisioning import (
    SERVER_DAYS,
    CertificateFiles,
    certificate_fingerprint,
    create_authority,
    issue_server_certificate,
)
from .study import Study, answer_for, coordinator_identity

JOINS = "joins"


def renew_certificates(
    study: Study, *, days: float = SERVER_DAYS, external: ExternalCertificate | None = None
) -> tuple[CertificateFiles, CertificateFiles]:
    """Replace the gateway's and the SuperLink's certificate and key; (gateway, SuperLink).

    With ``external`` the gateway gets that one. Without, a gateway whose certificate is not of the
    study's own authority keeps it. All new files are made before the first old one is touched. A
    running coordinator shows the old ones until it is started again.

    Raises InvalidInputError where the authority's key is missing, or for an external certificate
    that would not serve the study's names.
    """
    folder = CoordinatorFolder(study.path)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    wanted: list[tuple[str, tuple[str, ...], CertificateFiles]] = [
        ("superlink", (LOOPBACK, "localhost"), folder.superlink)
    ]
    if external is not None:
        external.check(study.names)
    if external is not None or not shows_external_certificate(folder):
        wanted.insert(0, ("gateway", study.names, folder.gateway))
    made: list[tuple[CertificateFiles, CertificateFiles]] = []
    with ExitStack() as on_error:
        for name, names, files in wanted:
            new = CertificateFiles(study.path / f".{name}.{stamp}.crt", study.path / f".{name}.{stamp}.key")
            for path in (new.certificate, new.key):
                on_error.callback(path.unlink, missing_ok=True)
            if external is not None and files == folder.gateway:
                external.write(study.path, file_name=f".{name}.{stamp}")
            else:
                issue_server_certificate(
                    folder.authority, study.path, names=names, days=days, file_name=f".{name}.{stamp}"
                )
            made.append((new, files))
        on_error.pop_all()
    for new, files in made:
        _put_in_place(new.key, files.key, stamp)
        _put_in_place(new.certificate, files.certificate, stamp)
    if external is not None:
        external.write_authority(study.path)
    return folder.gateway, folder.superlink


def renew_authority(study: Study) -> CertificateFiles:
    """Make a new authority and server certificates signed by it; the authority.

    Everything is made in a folder of its own before the first old file is touched. A gateway whose
    certificate is from an authority of the operator's own keeps it.
    """
    folder = CoordinatorFolder(study.path)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    stage = study.path / f".authority.{stamp}"
    pairs = [folder.authority, folder.superlink]
    try:
        authority = create_authority(stage)
        loopback = (LOOPBACK, "localhost")
        issue_server_certificate(authority, stage, names=loopback, file_name=folder.superlink.key.stem)
        if not shows_external_certificate(folder):
            issue_server_certificate(authority, stage, names=study.names, file_name=folder.gateway.key.stem)
            pairs.append(folder.gateway)
        for files in pairs:
            _put_in_place(stage / files.key.name, files.key, stamp)
            _put_in_place(stage / files.certificate.name, files.certificate, stamp)
        folder.authority.key.with_name(f"authority.until-{stamp}.key").unlink(missing_ok=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    open_audit_log(study.path).append(
        "authority-renewed", certificate_sha256=certificate_fingerprint(folder.authority.certificate)
    )
    return folder.authority


def write_join_files(study: Study) -> list[Path]:
    """A new join file for every admitted hospital, in ``joins/`` of the study's folder."""
    record = open_audit_log(study.path).append("join-files-written", sites=[s.name for s in study.sites()])
    folder = study.path / JOINS
    folder.mkdir(mode=0o700, exist_ok=True)
    identity = coordinator_identity(study)
    return [
        write_answer(
            answer_for(study, site.name, site.fingerprint, number=record.sequence),
            folder / f"{site.name}.join.json",
            identity=identity,
        )
        for site in study.sites()
    ]


def shows_external_certificate(folder: CoordinatorFolder) -> bool:
    """Whether the gateway's certificate is from an authority of the operator's own."""
    return folder.gateway_authority != folder.authority.certificate


def _put_in_place(new: Path, path: Path, stamp: str) -> None:
    """Replace ``path`` in one step; what was there stays beside it, under the date of the change."""
    if path.exists():
        kept = path.with_name(f"{path.stem}.until-{stamp}{path.suffix}")
        try:
            kept.hardlink_to(path)
        except OSError:  # a file system without hard links
            path.rename(kept)
    new.replace(path)

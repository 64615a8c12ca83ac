"""New server certificates for a study whose authority stays, so that no hospital has to join again.

The gateway's certificate is for the names in ``study.toml``: a name added there is in the new one.
One from an authority of the operator's own is replaced by the next one from there, never by ours.
Old keys and certificates are kept beside the new ones, under the date of the change.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from .external_certificate import ExternalCertificate
from .flower_processes.superlink import LOOPBACK, CoordinatorFolder
from .provisioning import SERVER_DAYS, CertificateFiles, issue_server_certificate
from .study import Study


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


def shows_external_certificate(folder: CoordinatorFolder) -> bool:
    """Whether the gateway's certificate is from an authority of the operator's own."""
    return folder.gateway_authority != folder.authority.certificate


def _put_in_place(new: Path, path: Path, stamp: str) -> None:
    if path.exists():
        path.rename(path.with_name(f"{path.stem}.until-{stamp}{path.suffix}"))
    new.rename(path)

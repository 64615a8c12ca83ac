"""The checks of the coordinator's study folder and machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from instahide.errors import InvalidInputError

from ..coordinator.revocations import REVOKED
from ..external_certificate import ExternalCertificate
from ..flower_processes.superlink import LOOPBACK, CoordinatorFolder
from ..identity import IDENTITY_FILE
from ..provisioning import SECRET_BYTES, CertificateFiles
from ..study import Study
from . import machine, ports
from .checks import Check, Outcome, failed, ok, skipped, warning
from .files import (
    is_identity_key,
    is_key_of_certificate,
    issued_certificate,
    private_file,
    private_folder,
    read_certificate,
    validity,
)
from .network import Address, check_name
from .packages import check_packages, check_versions

RESTORE = "restore it from a backup; without it, make a new study and let the hospitals join again"
RENEW = "`instahide coordinator renew STUDY` makes it anew; hospitals need not join again"
RENEW_EXTERNAL = (
    "get a new one from your own authority, then `instahide coordinator renew STUDY --certificate-file FILE "
    "--key-file FILE --ca-file FILE`; hospitals need not join again unless the authority changed"
)
NO_NAMES = warning(
    "no name server answered in time", fix="see that this machine's and the hospitals' name servers know it"
)
SUPERLINK_NAMES = (LOOPBACK, "localhost")
NEW_AUTHORITY = "`instahide coordinator renew STUDY --authority`, then send each hospital its new join file"


def coordinator_checks(study: Study) -> list[Check]:
    """All checks of a study's folder, whether its coordinator is up or not."""
    folder = CoordinatorFolder(study.path)
    return [
        Check("installed versions", check_versions),
        Check("package names", check_packages),
        Check("study folder", lambda: private_folder(study.path)),
        Check("authority", partial(_authority, folder)),
        Check("gateway certificate", partial(_gateway, folder, study.names)),
        Check(
            "SuperLink certificate",
            partial(_issued, folder, folder.superlink.certificate, (LOOPBACK, "localhost")),
        ),
        *(_key_check(f"{name} key", files) for name, files in _pairs(folder).items()),
        Check("SuperExec secret", partial(_secret, folder.secret)),
        Check(
            "identity key",
            lambda: private_file(study.path / IDENTITY_FILE, restore=RESTORE, is_good=is_identity_key),
        ),
        Check("roster", partial(_roster, study)),
        *(Check(f"name {name}", partial(_own_name, folder, study, name), NO_NAMES) for name in study.names),
        Check("gateway port", partial(ports.check_port, folder, study.listen, study.port)),
        Check("SuperLink", partial(ports.check_superlink, folder)),
        Check(
            "gateway's answer",
            partial(ports.check_gateway, folder, study.listen, study.port, next(iter(study.names), "")),
        ),
        Check("disk", lambda: machine.check_disk(study.path)),
        Check("memory", machine.check_memory),
        Check("time service", machine.check_time_service),
    ]


def _pairs(folder: CoordinatorFolder) -> dict[str, CertificateFiles]:
    return {"authority": folder.authority, "gateway": folder.gateway, "SuperLink": folder.superlink}


def _key_check(name: str, files: CertificateFiles) -> Check:
    restore = RESTORE if name.startswith("authority") else f"restore it from a backup, or: {RENEW}"
    return Check(
        name,
        lambda: private_file(files.key, restore=restore, is_good=is_key_of_certificate(files.certificate)),
    )


def _authority(folder: CoordinatorFolder) -> Outcome:
    return validity(read_certificate(folder.authority.certificate), renew=NEW_AUTHORITY)


def _issued(folder: CoordinatorFolder, path: Path, names: tuple[str, ...]) -> Outcome:
    return issued_certificate(path, folder.authority.certificate, names=names, renew=RENEW)


def _gateway(folder: CoordinatorFolder, names: tuple[str, ...]) -> Outcome:
    """The certificate that hospitals see: of the study's authority, or of the operator's own."""
    if folder.gateway_authority == folder.authority.certificate:
        return _issued(folder, folder.gateway.certificate, names)
    external = ExternalCertificate(
        certificate=folder.gateway.certificate,
        key=folder.gateway.key,
        authority=folder.gateway_authority,
    )
    until = validity(read_certificate(folder.gateway.certificate), renew=RENEW_EXTERNAL)
    try:
        external.check(names)
    except InvalidInputError as error:
        return failed(error.message, fix=until.fix or RENEW_EXTERNAL)
    return Outcome(until.state, f"from your own authority, for {', '.join(names)}; {until.seen}", until.fix)


def _secret(path: Path) -> Outcome:
    return private_file(path, restore=RESTORE, is_good=lambda data: len(data) == SECRET_BYTES)


def _roster(study: Study) -> Outcome:
    sites, runs = study.sites(), study.run_names()
    if not sites:
        return skipped(
            "no hospital is admitted yet", fix="instahide coordinator admit STUDY NAME.request.json"
        )
    if len({(site.class_names, site.image_shape) for site in sites}) > 1:
        return warning(
            "the hospitals' classes or image shapes differ", fix="admit the hospitals again with one list"
        )
    revoked = len({entry.node_key for entry in study.revocations() if entry.why == REVOKED})
    out = f", {revoked} revoked" if revoked else ""
    return ok(f"{len(sites)} hospitals{out}, {len(runs)} runs")


def _own_name(folder: CoordinatorFolder, study: Study, name: str) -> Outcome:
    """Hospitals may have a name server of their own, so a name unknown here only warns."""
    outcome = check_name(Address(name, study.port, folder.authority.certificate))
    if outcome.fix:
        return warning(outcome.seen, fix="see that the hospitals' name servers know it")
    return outcome

"""``instahide coordinator renew``: new server certificates, or a new authority."""

from __future__ import annotations

from pathlib import Path

import typer

from instahide.errors import InvalidInputError

from .console import OutputFormat, print_json

FORMAT = typer.Option(OutputFormat.text, "--format", help="text for people, json for programs.")
CERTIFICATE_FILE = typer.Option(
    None, "--certificate-file", help="A gateway certificate from an authority of your own (PEM, with chain)."
)
KEY_FILE = typer.Option(None, "--key-file", help="Its private key (PEM, no passphrase).")
CA_FILE = typer.Option(None, "--ca-file", help="The certificate of that authority (PEM), for the hospitals.")


def renew(
    study: Path = typer.Argument(..., help="The study's folder.", show_default=False),
    certificate_file: Path | None = CERTIFICATE_FILE,
    key_file: Path | None = KEY_FILE,
    ca_file: Path | None = CA_FILE,
    authority: bool = typer.Option(
        False, "--authority", help="A new authority as well, for which every hospital joins again."
    ),
    output: OutputFormat = FORMAT,
) -> None:
    """Make the server certificates anew, for the names in study.toml. Hospitals need not join again.

    The authority stays. The old certificates and keys are kept beside the new
    ones; a running coordinator must be started again to show the new ones. A
    gateway certificate from an authority of your own stays as it is, unless you
    give the three files of the next one; where that authority is another one than
    before, the hospitals have to join again.

    With --authority the study's own authority is made anew (its key may have been
    seen, or it ends), and its old key is deleted. Where the hospitals' authority
    has changed, new join files for all of them are in STUDY/joins; they are signed
    by the coordinator's identity key, so nothing is compared by telephone. Until it
    has joined, a hospital is out.

    Example: instahide coordinator renew study/
    """
    from ..external_certificate import external_certificate
    from ..flower_processes.superlink import CoordinatorFolder
    from ..provisioning import certificate_expiry, certificate_fingerprint
    from ..renewal import renew_authority, renew_certificates, write_join_files
    from ..study import load_study

    made = load_study(study)
    external = external_certificate(certificate_file, key_file, ca_file)
    if authority and external is not None:
        raise InvalidInputError(
            "--authority makes the study's own authority anew, and the three files bring one of yours",
            hint="do one after the other",
        )
    before = certificate_fingerprint(CoordinatorFolder(made.path).gateway_authority)
    if authority:
        renew_authority(made)
    else:
        renew_certificates(made, external=external)
    gateway = CoordinatorFolder(made.path).gateway
    after = certificate_fingerprint(CoordinatorFolder(made.path).gateway_authority)
    files = write_join_files(made) if before != after else []
    ends = certificate_expiry(gateway.certificate).date().isoformat()
    if output is OutputFormat.json:
        print_json(
            {
                "study": str(made.path),
                "names": list(made.names),
                "gateway-certificate-expires": ends,
                "authority-sha256": after,
                "hospitals-join-again": before != after,
                "join-files": [str(path) for path in files],
            }
        )
        return
    typer.echo(f"the gateway's certificate is for {', '.join(made.names)} and ends on {ends}")
    if before != after:
        typer.echo(f"the authority is another one (fingerprint {after}): send each hospital its join file")
        for path in files:
            typer.echo(f"  {path}")
    typer.echo(f"start the coordinator again to show it: instahide coordinator start {study}")

"""The coordinator's study folder: its settings, its hospitals, its runs.

    study/
      study.toml        names the hospitals use, gateway address and port
      sites.json        admitted hospitals: node id, name, key fingerprint, counts, classes, shape
      revoked.json      keys that are refused (``coordinator.revocations``)
      joins/            join files that were all written at once (``renewal``)
      runs/NAME/        one folder a run: events, checkpoints, model (written by the ServerApp)
      identity.key      the coordinator's identity key, which signs the heads of its audit log
      audit.jsonl       its audit log, over all runs
      authority.crt ... keys, certificates and Flower's state (``flower_processes.superlink``)

The class names and the image shape of a run come from the admitted hospitals, which must agree
on both; the initial weights are drawn here from the run's public ``initialization-seed``.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from instahide.atomic import atomic_write_bytes, atomic_write_text, nothing_left_on_error
from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from .admission import admitted_before, check_keys, replaced_keys
from .config import RunConfig
from .coordinator.audit import open_audit_log
from .coordinator.revocations import REVOCATIONS, Revocation, read_revocations
from .external_certificate import ExternalCertificate, gateway_authority
from .hidden_sum import hidden_sum, roster_entry
from .identity import IDENTITY_FILE, Identity, load_identity, load_or_create_identity
from .joining import JoinAnswer, JoinRequest
from .plan import Plan
from .provisioning import check_server_names
from .revocation import refuse
from .safety_numbers import coordinator_safety_number

SETTINGS, SITES, RUNS = "study.toml", "sites.json", "runs"
RUN_SETTINGS = "run.json"
INITIAL_WEIGHTS = "initial.safetensors"
DEFAULT_PORT = 9443
_PREPARED = (INITIAL_WEIGHTS, SITES, RUN_SETTINGS)


@dataclass(frozen=True)
class AdmittedSite:
    """A hospital as the coordinator knows it."""

    node_id: int
    name: str
    fingerprint: str
    num_examples: int
    evaluate_num_examples: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    identity_key: str


@dataclass(frozen=True)
class Study:
    """A study folder and its settings."""

    path: Path
    names: tuple[str, ...]
    listen: str
    port: int

    @property
    def address(self) -> str:
        """What the hospitals connect to, ``host:port``."""
        host = self.names[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def run_folder(self, name: str) -> Path:
        """Folder of the run called ``name``."""
        return self.path / RUNS / name

    def run_names(self) -> list[str]:
        """Runs that were started here, oldest first."""
        folder = self.path / RUNS
        found = list(folder.glob(f"*/{RUN_SETTINGS}"))  # written once, when all else is in place
        return [entry.parent.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)]

    def revocations(self) -> tuple[Revocation, ...]:
        """Keys that are refused. Raises IntegrityError if ``revoked.json`` is damaged."""
        return read_revocations(self.path / REVOCATIONS)

    def sites(self) -> list[AdmittedSite]:
        """Admitted hospitals, without those revoked since.

        Raises IntegrityError if ``sites.json`` or ``revoked.json`` is damaged.
        """
        refused = {entry.node_key for entry in self.revocations()}
        return [site for site in self._written_down() if site.fingerprint not in refused]

    def _written_down(self) -> list[AdmittedSite]:
        path = self.path / SITES
        if not path.exists():
            return []
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return [
                AdmittedSite(
                    **{
                        **row,
                        "class_names": tuple(row["class_names"]),
                        "image_shape": tuple(row["image_shape"]),
                    }
                )
                for row in rows
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{path} is damaged ({error})", hint="admit the hospitals again") from error


def create_study(
    path: Path,
    *,
    names: tuple[str, ...],
    listen: str,
    port: int,
    external: ExternalCertificate | None = None,
) -> Study:
    """Make a study folder with its keys and certificates; ``external`` is the gateway's, if given.

    Raises RefusedError if there is one, InvalidInputError for wrong names, port or certificate.
    """
    from .flower_processes.superlink import create_coordinator_folder

    if not 1 <= port <= 65_535:
        raise InvalidInputError(f"port {port} does not exist", hint="use a port from 1024 to 65535")
    check_server_names(names)
    if (path / SETTINGS).exists():
        raise RefusedError(f"{path} already holds a study", hint="use another folder")
    with nothing_left_on_error(path):
        create_coordinator_folder(path, names=names, external=external)
        load_or_create_identity(path / IDENTITY_FILE)
        lines = [
            f"names = {json.dumps(list(names))}  # in the gateway's certificate; hospitals use the first",
            f"listen = {json.dumps(listen)}  # address the gateway listens on",
            f"port = {port}",
        ]
        atomic_write_text(path / SETTINGS, "\n".join(lines) + "\n", mode=0o600)
    return load_study(path)


def load_study(path: Path) -> Study:
    """Read a study folder. Raises InvalidInputError if it is none."""
    try:
        table = tomllib.loads((path / SETTINGS).read_text(encoding="utf-8"))
        return Study(
            path.resolve(), tuple(map(str, table["names"])), str(table["listen"]), int(table["port"])
        )
    except OSError as error:
        raise InvalidInputError(
            f"{path} is not a study folder", hint="make one with `instahide coordinator init`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path / SETTINGS} cannot be read: {error}", hint="it needs names, listen and port"
        ) from error


def coordinator_identity(study: Study) -> Identity:
    """The coordinator's identity key, which signs join files and the heads of its audit log."""
    return load_identity(study.path / IDENTITY_FILE)


def coordinator_number(study: Study) -> str:
    """The coordinator's safety number, as its hospitals see it."""
    authority = gateway_authority(study.path, study.path / "authority.crt").read_text(encoding="ascii")
    return coordinator_safety_number(authority, coordinator_identity(study).public_line)


def check_admissible(study: Study, request: JoinRequest) -> None:
    """Whether a hospital fits the study, before its key is registered.

    Raises RefusedError for keys it may not ask with (``admission``), or where classes or shape differ
    from the study's.
    """
    sites = study.sites()
    check_keys(request, sites, study.revocations())
    for site in sites:
        _check_agree(site, request)


def admit(study: Study, request: JoinRequest, node_id: int) -> JoinAnswer:
    """Write a hospital down (its key is registered already as ``node_id``); the answer to send back.

    Keys that the request replaces are refused from now on.
    """
    check_admissible(study, request)
    sites = study.sites()
    before = admitted_before(request, sites)
    others = [site for site in sites if site is not before]
    admitted = AdmittedSite(
        node_id=node_id,
        name=request.name,
        fingerprint=request.fingerprint,
        num_examples=request.num_examples,
        evaluate_num_examples=request.evaluate_num_examples,
        class_names=request.class_names,
        image_shape=request.image_shape,
        identity_key=request.identity_key,
    )
    told = {"replaced_keys": list(request.replaced)} if request.replaced else {}
    record = open_audit_log(study.path).append(
        "site-admitted",
        site=request.name,
        node_key=request.fingerprint,
        identity_key=request.identity,
        **told,
    )
    if (replaced := replaced_keys(request, sites, time=record.time)) is not None:
        refuse(study.path, [replaced])
    rows = [asdict(site) for site in [*others, admitted]]
    atomic_write_text(study.path / SITES, json.dumps(rows, indent=2) + "\n", mode=0o600)
    return answer_for(study, request.name, request.fingerprint, number=record.sequence)


def answer_for(study: Study, name: str, fingerprint: str, *, number: int) -> JoinAnswer:
    """The join file's content for the hospital ``name`` with this node key; ``number`` grows with time."""
    return JoinAnswer(
        name=name,
        coordinator=study.address,
        authority=gateway_authority(study.path, study.path / "authority.crt").read_text(encoding="ascii"),
        identity_key=coordinator_identity(study).public_line,
        fingerprint=fingerprint,
        number=number,
    )


def _check_agree(site: AdmittedSite, request: JoinRequest) -> None:
    if site.name == request.name:
        return
    if site.class_names != request.class_names:
        raise RefusedError(
            f"{request.name} has classes {list(request.class_names)!r:.200}, {site.name} has "
            f"{list(site.class_names)!r:.200}",
            hint="all sites of a study need one list: `instahide node init --class NAME --class NAME ...`",
        )
    if site.image_shape != request.image_shape:
        raise RefusedError(
            f"{request.name} has images of {request.image_shape}, {site.name} of {site.image_shape}",
            hint="all sites of a study need one image shape (channels, height, width)",
        )


def run_config(study: Study, settings: Mapping[str, Any]) -> RunConfig:
    """The complete settings of a new run: the sites' classes and shape, the study's folders.

    Raises InvalidInputError for wrong settings or no hospitals.
    """
    sites = study.sites()
    if not sites:
        raise InvalidInputError(
            "no hospital is admitted yet", hint="`instahide coordinator admit STUDY NAME.request.json`"
        )
    shared: dict[str, Any] = {
        "class-names": list(sites[0].class_names),
        "image-shape": list(sites[0].image_shape),
    }
    if settings.get("secure-aggregation") is True:
        shared |= _for_a_hidden_sum(sites)
    config = RunConfig.from_mapping({**shared, **settings})
    if config.secure_aggregation:
        hidden_sum(config, 1)  # thresholds and bit budget, whatever the model's size
    return _with_folders(study, config)


def _for_a_hidden_sum(sites: list[AdmittedSite]) -> dict[str, Any]:
    """The roster of the admitted sites, and a bound on their sizes that tells other sites little."""
    return {
        "roster": [roster_entry(site.name, site.identity_key) for site in sites],
        "max-site-examples": bound_on_sizes(max(site.num_examples for site in sites)),
    }


def bound_on_sizes(largest: int) -> int:
    """The next of 1, 2, 5, 10, 20, ... that is no smaller."""
    largest = max(1, largest)
    power: int = 10 ** (len(str(largest)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= largest)


def _with_folders(study: Study, config: RunConfig) -> RunConfig:
    folder = str(study.run_folder(config.run_name))
    return replace(config, run_directory=folder, audit_folder=str(study.path))


def prepare_run(study: Study, settings: Mapping[str, Any]) -> RunConfig:
    """Make the run's folder with its sites and initial weights; the complete settings.

    Raises InvalidInputError for wrong settings or no hospitals, RefusedError if the run exists.
    """
    config = run_config(study, settings)
    folder = study.run_folder(config.run_name)
    if _was_cut_short(folder):
        shutil.rmtree(folder)
    if folder.exists():
        raise RefusedError(
            f"there is a run called {config.run_name!r} already",
            hint="choose another --name, or `instahide coordinator resume` to continue that one",
        )
    folder.mkdir(mode=0o700, parents=True)
    try:
        write_initial_weights(config, folder / INITIAL_WEIGHTS)
        write_run_sites(study.sites(), folder / SITES)
        atomic_write_text(folder / RUN_SETTINGS, json.dumps(config.to_mapping(), indent=2) + "\n")
    except BaseException:  # an unknown model, a full disk, Ctrl-C: the name stays free
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return config


def _was_cut_short(folder: Path) -> bool:
    """Whether the folder is what a preparation left that was killed: no settings, nothing of a run's."""
    if not folder.is_dir() or (folder / RUN_SETTINGS).exists():
        return False
    names = {path.name for path in folder.iterdir()} - {INITIAL_WEIGHTS, SITES}
    return all(name.startswith((".tmp", *(f".{part}." for part in _PREPARED))) for name in names)


def record_submission(study: Study, config: RunConfig, plan: Plan) -> None:
    """Write down in the audit log that a run is about to be submitted, and under which plan."""
    open_audit_log(study.path).append(
        "run-submitted", run=config.run_name, plan_sha256=plan.sha256, bundle_sha256=plan.bundle_sha256
    )


def load_run(study: Study, name: str) -> RunConfig:
    """The settings of a run started before; its folder is where the study is now.

    Raises InvalidInputError if there is none of that name, IntegrityError if its file is damaged.
    """
    known = study.run_names()
    if name not in known:
        raise InvalidInputError(
            f"there is no run called {name!r}", hint=f"runs: {', '.join(known) or 'none yet'}"
        )
    path = study.run_folder(name) / RUN_SETTINGS
    try:
        config = RunConfig.from_mapping(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is damaged ({error})", hint="restore it from a copy, or start a new run"
        ) from error
    return _with_folders(study, config)


def run_is_served(folder: Path) -> bool:
    """Whether the ServerApp that last opened a run's folder is still alive."""
    try:
        holder = psutil.Process(int((folder / ".lock").read_text(encoding="ascii")))
        return bool(holder.status() != psutil.STATUS_ZOMBIE)
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False


def write_run_sites(sites: list[AdmittedSite], path: Path) -> None:
    """Name and registered sizes by node id: what the ServerApp checks replies against."""
    table = {
        str(site.node_id): {
            "name": site.name,
            "num-examples": site.num_examples,
            "evaluate-num-examples": site.evaluate_num_examples,
            "identity-key": site.identity_key,
        }
        for site in sites
    }
    atomic_write_text(path, json.dumps(table, indent=2) + "\n")


def write_initial_weights(config: RunConfig, path: Path) -> None:
    """Draw the model's initial weights from the public seed; floating-point tensors only."""
    from safetensors.torch import save

    from instahide.models import build_model

    channels, height, width = config.image_shape
    model = build_model(
        config.model,
        image_shape=(channels, height, width),
        num_classes=len(config.class_names),
        absolute_input=config.absolute_input,
        initialization_seed=config.initialization_seed,
    )
    weights = {
        name: tensor.contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    atomic_write_bytes(path, save(weights))  # not save_file: its error for a full disk is no OSError

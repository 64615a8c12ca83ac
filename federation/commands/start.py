"""``instahide coordinator start`` and ``instahide node start``: services in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from instahide.errors import FederationError

from .console import describe_event

if TYPE_CHECKING:
    from ..foreground import Foreground
    from ..node_folder import NodeFolder
    from ..status.node_writer import NodeWriter
    from ..supervision import ManagedProcess

STATUS_FOLDER = typer.Option(
    None,
    help="Folder for status.html and metrics.prom, say one that node_exporter or a web server reads.",
    show_default=False,
)
LOOK_SECONDS = 1.0


def coordinator_start(
    study: Path = typer.Argument(..., help="The study's folder.", show_default=False),
    threads: int = typer.Option(2, min=1, help="Processor threads for each server process."),
    status_folder: Path | None = STATUS_FOLDER,
) -> None:
    """Start SuperLink, SuperExec and gateway in the foreground, until Ctrl-C.

    Only the gateway is reachable from outside, and it passes only what nodes
    need. It ends when one of the three ends (exit code 5); nodes find a restarted
    coordinator by themselves, and `coordinator resume` continues a run that was
    under way. SIGTERM ends it with exit code 0.

    One line an event on standard output. STUDY/status.html is a page to watch
    the study with, STUDY/metrics.prom the same for Prometheus; both are written
    anew after each event.

    Example: instahide coordinator start study/
    """
    from ..expiry import study_warnings
    from ..flower_processes.superlink import START_SECONDS, CoordinatorFolder, start_coordinator
    from ..foreground import foreground
    from ..status.files import METRICS, PAGE, StatusFiles
    from ..status.presence import PresenceWatch, superlink_presence
    from ..status.study_writer import StudyWriter
    from ..study import load_study

    settings = load_study(study)
    folder = CoordinatorFolder(settings.path)
    with foreground() as service:
        files = StatusFiles(status_folder or settings.path, say=service.say)
        service.starting("starting ...", seconds=3 * START_SECONDS)
        for line in study_warnings(settings):
            service.say(line)
        with start_coordinator(
            folder, gateway_host=settings.listen, gateway_port=settings.port, num_threads=threads
        ) as coordinator:
            ask = superlink_presence(coordinator.superlink_address, folder.authority.certificate)
            with PresenceWatch(ask) as presence:
                writer = StudyWriter(
                    settings, files, presence=presence.latest, say=service.say, describe=describe_event
                )
                service.say(f"status page: {files.folder / PAGE}; for Prometheus: {files.folder / METRICS}")
                service.ready(f"gateway on {settings.listen} port {coordinator.gateway_port}; Ctrl-C stops")
                try:
                    while True:
                        coordinator.check()
                        writer.look()
                        if service.wait(LOOK_SECONDS):
                            break
                except FederationError as error:
                    writer.close(error.message.splitlines()[0])
                    raise
                writer.close()


def node_start(
    node: Path = typer.Argument(..., help="The node's folder.", show_default=False),
    accept_changed_data: bool = typer.Option(
        False, "--accept-changed-data", help="Serve although the images are not those of the last start."
    ),
    status_folder: Path | None = STATUS_FOLDER,
) -> None:
    """Serve the federation in the foreground, until Ctrl-C: site worker and node, restarted if they fall.

    SIGTERM ends it with exit code 0. One line an event on standard output.
    NODE/state/status.html is a page to watch the node with, NODE/state/metrics.prom
    the same for Prometheus.

    Example: instahide node start st-mary/
    """
    from ..expiry import node_warnings
    from ..foreground import foreground
    from ..node_folder import READY_SECONDS, NodeFolder, relay_process, start_worker
    from ..status.files import StatusFiles
    from ..status.node_writer import NodeWriter

    folder = NodeFolder(node.resolve())
    relay = relay_process(folder)
    with foreground() as service:
        folder.state.mkdir(mode=0o700, exist_ok=True)
        files = StatusFiles(status_folder or folder.state, say=service.say)
        service.starting("starting the site worker (reads the images once) ...", seconds=READY_SECONDS)
        for line in node_warnings(folder):
            service.say(line)
        worker = start_worker(folder, accept_changed_data=accept_changed_data)
        serving = _ServingNode(service, node, folder, worker, NodeWriter(folder, files, say=service.say))
        try:
            service.ready("site worker ready; connecting to the coordinator; Ctrl-C stops")
            serving.until_told_to_end(relay)
        except FederationError as error:
            serving.stop(error.message.splitlines()[0])
            raise
        finally:
            serving.stop()


class _ServingNode:
    """Worker and relay of a node while they serve; the worker is started again when it falls."""

    def __init__(
        self, service: Foreground, node: Path, folder: NodeFolder, worker: ManagedProcess, writer: NodeWriter
    ) -> None:
        from ..site.plans import PlanBook

        self._service, self._node, self._folder = service, node, folder
        self._worker, self._writer = worker, writer
        self._plans, self._announced = PlanBook(folder.state), set[str]()
        self._is_connected = False  # the coordinator has admitted this start of the relay
        self._is_stopped = False

    def until_told_to_end(self, relay: ManagedProcess) -> None:
        """Raises FederationError if the worker falls and does not come up again."""
        from ..flower_processes.node import supervised_node

        with supervised_node(relay, on_exit=self._relay_ended):
            while not self._service.wait(LOOK_SECONDS):
                self._look(relay)

    def stop(self, problem: str = "") -> None:
        """Stop the worker and write the last status; a second call does nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._worker.stop()
        self._folder.ready_file.unlink(missing_ok=True)
        self._writer.close(problem)

    def _look(self, relay: ManagedProcess) -> None:
        from ..expiry import gateway_warnings
        from ..flower_processes.node import is_connected
        from ..node_folder import READY_SECONDS, start_worker
        from ..plan import SHORT
        from ..status.connection import CONNECTED

        if not self._is_connected and relay.is_running and is_connected(relay):
            self._is_connected = True
            self._service.say("connected: this node serves the federation")
            for line in gateway_warnings(self._folder):
                self._service.say(line)
            self._writer.connection(CONNECTED)
        pending = self._plans.pending()
        for waiting in sorted(pending - self._announced):
            self._announced.add(waiting)
            self._service.say(f"a plan waits: instahide node plan show {self._node} {waiting[:SHORT]}")
        if not self._worker.is_running:
            self._service.say("the site worker ended; starting it again")
            with self._service.busy(READY_SECONDS):
                self._worker = start_worker(self._folder)
        self._writer.look(frozenset(pending))

    def _relay_ended(self, status: int, reason: str | None, wait: float) -> None:
        """Called from the thread that watches the relay."""
        from ..status.connection import RETRYING

        self._is_connected = False
        words = reason or "see state/node.log"
        self._service.say(f"node ended (status {status}): {words}; again in {wait:g} s")
        self._writer.connection(RETRYING, words)

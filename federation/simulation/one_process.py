"""A federation in one process: the coordinator's rounds and the sites' tasks, with no network between them.

For studies that repeat many small runs. Everything that decides a result is the product's own: the rounds,
the checks of every update and the aggregation rule on one side (``coordinator.rounds``), policy, ledgers,
training and audit log on the other (``site.round_task``). What is missing is Flower, sockets, processes and
whatever goes wrong between them; ``federation/PROTOCOL.md`` and the tests of real runs are about those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from instahide.errors import InvalidInputError
from instahide.models import ImageClassifier, ModelSpec, build_from_spec

from ..config import RunConfig
from ..coordinator import rounds
from ..site.dataset import SiteData
from ..site.weights import load_weights
from .grid import InThisProcess, SimulatedClock, SimulatedGrid
from .run_folder import prepare_folder
from .sites import SimulatedSites


def simulate(
    config: RunConfig, sites: Mapping[str, SiteData], folder: Path, *, threads: int = 1
) -> ImageClassifier:
    """Carry out the run of ``config`` over ``sites`` (name → data) in ``folder``; the last global model.

    Class names and image shape are those of the sites; ``config`` need not name them.

    Raises:
        InvalidInputError: no sites, or sites that differ in classes or shape.
        FederationError: as ``rounds.run`` says, such as a round that too few sites answered.
    """
    shapes = {(data.class_names, data.training.image_shape) for data in sites.values()}
    if len(shapes) != 1:
        raise InvalidInputError(
            f"{len(sites)} sites with {len(shapes)} kinds of data",
            hint="give sites of the same classes and shape",
        )
    ((class_names, shape),) = shapes
    names = dict(enumerate(sites, start=1))
    hosts = SimulatedSites(
        folder, names, lambda number: sites[names[number]], threads=threads, most_open=len(names)
    )
    lines = {number: hosts.identity_line(number) for number in names}
    sizes = {number: len(sites[name].training) for number, name in names.items()}
    config = prepare_folder(
        config, folder / "coordinator", names, lines, class_names, shape, num_examples=sizes
    )
    players = InThisProcess(
        lambda number, request: hosts.answer(
            number, request.kind, request.to_mapping(), request.arrays, request.aggregation_record
        )
    )
    result = rounds.run(config, SimulatedGrid(players, list(names)), clock=SimulatedClock())
    spec = ModelSpec(config.model, shape, len(class_names), config.absolute_input)
    model = build_from_spec(spec, config.initialization_seed)
    load_weights(model, result.weights)
    return model.eval()

"""Byte for byte what a second program made from the protocol page (tests/vectors)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.secure_aggregation import (
    AggregationParameters,
    Confirmation,
    ConfirmRequest,
    MeanChannel,
    QuantisationPlan,
    Report,
    ReportRequest,
    Roster,
    ServerSession,
    SiteIdentity,
    SiteSession,
    UnmaskRequest,
    check_test_vector,
)
from federation.secure_aggregation.pairwise_masks import from_wire
from federation.secure_aggregation.session_secrets import TestOnlySecrets

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
KNOWN: dict[str, Any] = json.loads((VECTORS / "secure_aggregation.json").read_text(encoding="utf-8"))
ROUNDS = pytest.mark.parametrize("case", KNOWN["rounds"], ids=lambda case: f"ring-{case['ring-bits']}")


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def set_up(case: dict[str, Any]) -> tuple[Roster, ServerSession, dict[str, SiteSession]]:
    identities = {
        name: SiteIdentity(name, Ed25519PrivateKey.from_private_bytes(octets(key)))
        for name, key in case["identity-private-keys"].items()
    }
    parameters = AggregationParameters.for_sites(
        len(identities),
        vector_length=len(octets(case["vectors"]["a"])) * 8 // case["ring-bits"],
        num_channels=len(octets(case["channels"]["a"])) // 8,
        ring_bits=case["ring-bits"],
        threshold=case["threshold"],
        confirm_survivors=case["confirm-survivors"],
    )
    roster = Roster(
        run_name=case["run-name"],
        parameters=parameters,
        identities={name: identity.public_key for name, identity in identities.items()},
        settings_sha256=octets(case["settings-sha256"]),
    )
    server = ServerSession(roster, bytes(32), session_id=octets(case["session-id"]))
    request = server.request()
    sites = {
        name: SiteSession(roster, identity, request, secrets=TestOnlySecrets(octets(case["tapes"][name])))
        for name, identity in identities.items()
    }
    return roster, server, sites


@ROUNDS
def test_every_message_of_a_round_has_the_bytes_of_the_second_program(case: dict[str, Any]) -> None:
    roster, server, sites = set_up(case)
    assert roster.digest.hex() == case["roster-sha256"]
    for name, site in sites.items():
        assert site.advert().to_bytes().hex() == case["adverts"][name]
        server.add_advert(site.advert())
    request = server.start_round(case["server-round"], case["attempt"])
    assert request.to_bytes().hex() == case["report-request"]
    for name in case["reports"]:
        report = sites[name].report(
            request,
            from_wire(octets(case["vectors"][name]), case["ring-bits"]),
            from_wire(octets(case["channels"][name]), 64),
        )
        assert report.to_bytes().hex() == case["reports"][name]
        server.add_report(report)
    server.close_reports()
    if case["confirm-survivors"]:
        assert server.confirm_request().to_bytes().hex() == case["confirm-request"]
        for name in case["reports"]:
            confirmation = sites[name].confirm(server.confirm_request())
            assert confirmation.to_bytes().hex() == case["confirmations"][name]
            server.add_confirmation(confirmation)
    for name, asked in server.unmask_requests().items():
        assert asked.to_bytes().hex() == case["unmask-requests"][name]
        answer = sites[name].unmask(asked)
        assert answer.to_bytes().hex() == case["unmask-answers"][name]
        server.add_answer(answer)
    result = server.finish()
    assert result.vector.tobytes().hex() == case["sum"]
    assert result.channels.tobytes().hex() == case["channel-sum"]
    statements = server.start_round(case["server-round"] + 1).statements
    assert [each.hex() for each in statements] == list(case["statements"].values())


@ROUNDS
def test_both_ends_read_the_messages_of_the_second_program(case: dict[str, Any]) -> None:
    """Its reports give the server its sum; its requests open at our sites."""
    _, server, sites = set_up(case)
    for site in sites.values():
        server.add_advert(site.advert())
    server.start_round(case["server-round"], case["attempt"])
    request = ReportRequest.from_bytes(octets(case["report-request"]))
    for name, report in case["reports"].items():
        length = len(octets(case["vectors"][name])) * 8 // case["ring-bits"]
        zeros = np.zeros(length, dtype=f"u{case['ring-bits'] // 8}")
        sites[name].report(request, zeros, np.zeros(len(octets(case["channels"][name])) // 8, np.uint64))
        server.add_report(Report.from_bytes(octets(report)))
    server.close_reports()
    for name in case["reports"] if case["confirm-survivors"] else ():
        sites[name].confirm(ConfirmRequest.from_bytes(octets(case["confirm-request"])))
        server.add_confirmation(Confirmation.from_bytes(octets(case["confirmations"][name])))
    for name, asked in case["unmask-requests"].items():
        server.add_answer(sites[name].unmask(UnmaskRequest.from_bytes(octets(asked))))
    assert server.finish().vector.tobytes().hex() == case["sum"]


@pytest.mark.parametrize("case", KNOWN["plans"], ids=lambda case: f"ring-{case['ring-bits']}")
def test_plans_have_the_test_vectors_of_the_second_program(case: dict[str, Any]) -> None:
    plan = QuantisationPlan(
        vector_length=case["vector-length"],
        num_sites=case["num-sites"],
        coordinate_bound=float.fromhex(case["coordinate-bound"]),
        max_examples=case["max-examples"],
        ring_bits=case["ring-bits"],
        means=(MeanChannel(name="train-loss", weight="num-examples", largest=100.0),),
    )
    assert plan.digest().hex() == case["plan-sha256"]
    assert check_test_vector(plan).hex() == case["test-vector-sha256"]


def test_the_second_program_still_makes_the_file() -> None:
    path = VECTORS / "make_secure_aggregation.py"
    source = path.read_text(encoding="utf-8")
    assert not any(name in source for name in ("import federation", "from federation", "import numpy"))
    spec = importlib.util.spec_from_file_location("make_secure_aggregation", path)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.document() == KNOWN

"""Secure aggregation: the coordinator gets the sum of the sites' updates and no single one.

A state machine without sockets, files, clock or Flower; ``PROTOCOL.md`` says what is sent, who
learns what, against whom it protects and against whom not. ::

    plan = QuantisationPlan(vector_length=d, num_sites=n, coordinate_bound=1.0, max_examples=10_000)
    parameters = AggregationParameters.for_sites(n, vector_length=d, num_channels=plan.num_channels)
    roster = Roster(run_name="run", parameters=parameters, identities=keys, settings_sha256=digest)

    site     SiteSession(roster, identity, request): advert, accept, report, [confirm,] unmask
    server   ServerSession(roster, digest): request, add_advert, start_round, add_report, close_reports,
             [confirm_request, add_confirmation,] unmask_requests, add_answer, finish
    numbers  encode_update(plan, update, values), decode_sum(plan, sum, channels, num_survivors=...)
"""

from __future__ import annotations

from .channels import MeanChannel as MeanChannel
from .messages import Advert as Advert
from .messages import Confirmation as Confirmation
from .messages import ConfirmRequest as ConfirmRequest
from .messages import Report as Report
from .messages import ReportRequest as ReportRequest
from .messages import SessionRequest as SessionRequest
from .messages import UnmaskAnswer as UnmaskAnswer
from .messages import UnmaskRequest as UnmaskRequest
from .parameters import AggregationParameters as AggregationParameters
from .quantisation import DecodedMean as DecodedMean
from .quantisation import EncodedUpdate as EncodedUpdate
from .quantisation import QuantisationPlan as QuantisationPlan
from .quantisation import check_test_vector as check_test_vector
from .quantisation import decode_sum as decode_sum
from .quantisation import encode_update as encode_update
from .roster import Roster as Roster
from .roster import SiteIdentity as SiteIdentity
from .sealing import PackageError as PackageError
from .seeds import Dispute as Dispute
from .seeds import SeedError as SeedError
from .server import ServerSession as ServerSession
from .server_round import AggregateSum as AggregateSum
from .server_round import RoundAbortedError as RoundAbortedError
from .site import SiteSession as SiteSession
from .survivors import ContradictionError as ContradictionError

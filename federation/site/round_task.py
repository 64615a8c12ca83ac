"""One request, answered: held against the policy and the data, measured, trained, replied.

Everything that arrives is checked before anything is computed: the settings by
:class:`~federation.messages.RoundRequest`, the demand by the site's policy, the classes and
image shape by the registered data, the weights against the model this site builds itself from
the model's *name*. No code, pickle or architecture comes over the network.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instahide.dp_training import PrivateSum, train_with_dp
from instahide.errors import InstaHideError, InvalidInputError, RefusedError
from instahide.exposure import THROUGH_UPDATES, ExposureLedger
from instahide.models import ImageClassifier, ModelSpec, build_model
from instahide.privacy_curves import require
from instahide.training import TrainingResult, train
from instahide.training_device import resolve_device

from ..accounting import PrivacyEvent
from ..hidden_sum import to_vector
from ..messages import (
    CONFIRM,
    EVALUATE,
    SESSION,
    TRAIN,
    UNMASK,
    Arrays,
    RoundRequest,
    SiteReply,
)
from ..plan import Plan
from .audit import AuditFailedError, SiteAudit
from .dataset import SiteData
from .encodings import SiteEncodings, law_of
from .limits import RequestLimits
from .local_training import check_finite, learning_rates, measure, training_config
from .masked_rounds import MaskedRounds
from .plans import AwaitingApprovalError, PlanBook
from .policy import Policy, load_policy
from .privacy_budget import SitePrivacy
from .refusals import BudgetError, CancelledTaskError, faults_told_at_home, kind_of_refusal, refusal
from .run_history import RunHistory
from .weights import check_initial_weights, check_weights, load_weights, read_weights

logger = logging.getLogger(__name__)


class SiteTasks:
    """Answers requests over the site's data, one at a time.

    Args:
        site_name: the hospital's name in replies.
        data: the registered images.
        ledger: exposure counts.
        history: rounds served so far.
        privacy: differential privacy spent so far.
        plans: which plans this site has approved.
        audit: what is written down before a reply leaves.
        masked_rounds: the site's part in secure aggregation.
        policy_path: ``policy.toml``, read anew for each request.
        encodings_folder: where current encodings are kept.
        device: as for ``TrainingConfig``.
        threads: processor threads, lowered to the policy's ``max-threads``.
        models: models by their specification, where several sites of one process share them.
    """

    def __init__(
        self,
        site_name: str,
        data: SiteData,
        *,
        ledger: ExposureLedger,
        history: RunHistory,
        privacy: SitePrivacy,
        plans: PlanBook,
        audit: SiteAudit,
        masked_rounds: MaskedRounds,
        policy_path: Path,
        encodings_folder: Path,
        device: str = "auto",
        threads: int = 2,
        models: dict[ModelSpec, ImageClassifier] | None = None,
    ) -> None:
        self.site_name = site_name
        self._data, self._history, self._policy_path = data, history, policy_path
        self._privacy = privacy
        self._plans, self._audit, self._masked = plans, audit, masked_rounds
        self._ledger, self._fingerprints = ledger, ledger.fingerprints(data.training)
        self._encodings = SiteEncodings(data, ledger, encodings_folder)
        self._device, self._threads = device, threads
        self._models: dict[ModelSpec, ImageClassifier] = {} if models is None else models

    def answer(
        self,
        kind: str,
        settings: Mapping[str, Any],
        arrays: Arrays,
        *,
        aggregation_record: bytes = b"",
        bundle_sha256: str = "",
        should_stop: Callable[[], bool] = lambda: False,
    ) -> SiteReply:
        """The reply to one request; a refusal is a reply too.

        Raises:
            CancelledTaskError: ``should_stop`` became true.
        """
        try:
            request = RoundRequest.from_mapping(
                settings, kind=kind, arrays=arrays, aggregation_record=aggregation_record
            )
            return self._answer(request, bundle_sha256, should_stop)
        except CancelledTaskError:
            with suppress(AuditFailedError):
                self._audit.abandoned(kind, settings)
            raise
        except InstaHideError as error:
            return self._refused(kind, settings, error)

    def _answer(
        self, request: RoundRequest, bundle_sha256: str, should_stop: Callable[[], bool]
    ) -> SiteReply:
        started = time.perf_counter()
        if request.secure_aggregation != bool(request.aggregation_record):
            raise InvalidInputError(
                "the request's settings and its record of secure aggregation do not go together",
                hint="install the same release everywhere",
            )
        if request.kind in (CONFIRM, UNMASK):
            return self._opened(request)
        self._audit.policy_read(self._policy_path)
        policy = load_policy(self._policy_path)
        limits = RequestLimits(
            should_stop, max_seconds=policy.max_seconds, max_memory_gib=policy.max_memory_gib
        )
        limits.check()
        plan = self._admit(request, policy, bundle_sha256)
        model = self._model(request)
        if request.kind == SESSION:
            if request.differential_privacy == "example":
                self._affordable(model, request, policy)  # better said before others count on this site
            return self._session(request, model, policy)
        check_weights(model, request.arrays)
        if policy.check_initial_weights and request.kind == TRAIN and request.server_round == 1:
            check_initial_weights(model.spec, request.initialization_seed, request.arrays)
        if request.secure_aggregation:
            self._masked.check(request)
        self._audit.accepted(request, plan, approved=policy.plan_approval)
        paid = self._pay(model, request, policy) if _is_private(request) else None
        self._history.record(request)
        load_weights(model, request.arrays)
        try:
            metrics = self._measure_and_train(model, request, policy, limits, paid)
        except CancelledTaskError:
            limits.check()  # which tells a limit that was met from a relay that left
            raise
        metrics["worker-seconds"] = time.perf_counter() - started
        check_finite(metrics)
        weights = {} if request.kind == EVALUATE else read_weights(model)
        reply = self._reply(request, policy.allowed_part(metrics), weights)
        exposures = self._ledger.counts(self._fingerprints, kind=THROUGH_UPDATES)
        head = self._audit.sent(request, reply, exposures, update=weights)
        return replace(reply, audit_head=head.to_text())

    def _reply(self, request: RoundRequest, metrics: dict[str, int | float], weights: Arrays) -> SiteReply:
        """Weights and figures in the clear or, with secure aggregation, under the mask."""
        if not request.secure_aggregation:
            return SiteReply(site_name=self.site_name, metrics=metrics, arrays=weights)
        change = to_vector(weights) - to_vector(request.arrays) if weights else None
        record = self._masked.report(request, change, metrics)
        return SiteReply(site_name=self.site_name, aggregation_record=record)

    def _session(self, request: RoundRequest, model: ImageClassifier, policy: Policy) -> SiteReply:
        length = sum(array.size for array in read_weights(model).values())
        advert = self._masked.open_session(request, length, policy)
        head = self._audit.aggregated(request, "session-opened")
        return SiteReply(site_name=self.site_name, aggregation_record=advert, audit_head=head.to_text())

    def _opened(self, request: RoundRequest) -> SiteReply:
        """Its part in opening a sum it reported to: what may leave was decided when it reported."""
        self._audit.check_coordinator(request)
        if request.kind == CONFIRM:
            answer, event = self._masked.confirm(request), "survivors-confirmed"
        else:
            answer, event = self._masked.unmask(request), "shares-given"
        head = self._audit.aggregated(request, event)
        return SiteReply(site_name=self.site_name, aggregation_record=answer, audit_head=head.to_text())

    def _admit(self, request: RoundRequest, policy: Policy, bundle_sha256: str) -> Plan:
        """Hold a request against everything this site has decided; the plan it belongs to."""
        self._audit.check_coordinator(request)
        policy.check(request, self._history.facts(request, num_examples=len(self._data.training)))
        self._data.check_fits(request)
        plan = Plan.of(request, bundle_sha256=bundle_sha256)
        if not policy.plan_approval:
            logger.warning(
                "plan-approval is false: run %s is served without anyone's approval", plan.run_name
            )
            return plan
        is_new = not self._plans.knows(plan)
        try:
            self._plans.check(plan)
        except AwaitingApprovalError:
            if is_new and self._plans.knows(plan):
                self._audit.plan_pending(plan)
            raise
        return plan

    def _measure_and_train(
        self,
        model: ImageClassifier,
        request: RoundRequest,
        policy: Policy,
        limits: RequestLimits,
        paid: PrivacyEvent | None,
    ) -> dict[str, int | float]:
        threads = min(self._threads, policy.max_threads)
        torch.set_num_threads(threads)
        metrics: dict[str, int | float] = {"num-examples": len(self._data.training)}
        if request.evaluate or request.kind == EVALUATE:
            with faults_told_at_home("evaluation"):
                metrics |= self._evaluate(model, request)
        _stop_if(limits)
        if request.kind == EVALUATE:
            return metrics
        with faults_told_at_home("training"):
            if paid is not None:
                return metrics | self._train_privately(model, request, policy, threads, limits, paid)
            result = self._train(model, request, policy, threads, limits)
            return metrics | {"train-loss": result.history[-1].loss, "train-seconds": result.seconds}

    def _model(self, request: RoundRequest) -> ImageClassifier:
        """The model by its name, kept between rounds for its integer buffers, which do not travel."""
        channels, height, width = request.image_shape
        spec = ModelSpec(
            request.model, (channels, height, width), len(request.class_names), request.absolute_input
        )
        if spec not in self._models:
            self._models[spec] = build_model(
                spec.name,
                image_shape=spec.image_shape,
                num_classes=spec.num_classes,
                absolute_input=spec.absolute_input,
                initialization_seed=request.initialization_seed,
            )
        return self._models[spec].to(resolve_device(self._device))

    def _pay(self, model: ImageClassifier, request: RoundRequest, policy: Policy) -> PrivacyEvent:
        """Charge a round with differential privacy, on disk, before it is trained."""
        event = self._affordable(model, request, policy)
        self._privacy.charge(event)
        return event

    def _affordable(self, model: ImageClassifier, request: RoundRequest, policy: Policy) -> PrivacyEvent:
        """What a round costs, or BudgetError; before a run's first round, for the whole of it."""
        num_examples = len(self._data.training)
        num_weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        require("opacus")  # whatever would end the training is better said before it is paid for
        event = self._privacy.event_of(request, num_examples=num_examples, num_weights=num_weights)
        PrivateSum(num_weights, request.max_grad_norm, event.noise_multiplier)
        try:
            self._privacy.admit(request, event, policy)
        except RefusedError as error:
            raise BudgetError(error.message, hint=error.hint) from error
        return event

    def _train_privately(
        self,
        model: ImageClassifier,
        request: RoundRequest,
        policy: Policy,
        threads: int,
        should_stop: Callable[[], bool],
        event: PrivacyEvent,
    ) -> dict[str, int | float]:
        """DP-SGD on the images themselves; losses on training images are not private and not told."""
        result = train_with_dp(
            model,
            self._data.training,
            training_config(request, device=self._device, threads=threads),
            target_delta=request.target_delta,
            noise_multiplier=event.noise_multiplier,
            max_grad_norm=request.max_grad_norm,
            sample_rate=event.sample_rate,
            should_stop=should_stop,
            learning_rates=learning_rates(request, len(self._data.training)),
        )
        if result.interrupted:
            raise CancelledTaskError("the work was abandoned", hint="ask again")
        metrics: dict[str, int | float] = {"train-seconds": result.seconds}
        if "epsilon-spent" in policy.allowed_metrics:
            epsilon = self._privacy.epsilon(request.run_name, request.target_delta)
            if math.isfinite(epsilon):
                metrics["epsilon-spent"] = epsilon
        return metrics

    def _evaluate(self, model: ImageClassifier, request: RoundRequest) -> dict[str, int | float]:
        """The three inference modes on the site's test images; one, where views would show more.

        An encoded view of a test image has training images mixed in, which no ledger of differential
        privacy would count: a private run is measured with plain queries only; so are rows of a table.
        """
        if request.differential_privacy == "example" or self._data.test.is_table:
            return measure(model, self._data.test, None, request.num_views)
        encoder = self._encodings.encoder(law_of(request))
        return measure(model, self._data.test, encoder, request.num_views)

    def _train(
        self,
        model: ImageClassifier,
        request: RoundRequest,
        policy: Policy,
        threads: int,
        should_stop: Callable[[], bool],
    ) -> TrainingResult:
        result = train(
            model,
            self._training_data(request, policy),
            training_config(request, device=self._device, threads=threads),
            should_stop=should_stop,
            learning_rates=learning_rates(request, len(self._data.training)),
        )
        if result.interrupted:
            raise CancelledTaskError("the work was abandoned", hint="ask again")
        return result

    def _training_data(self, request: RoundRequest, policy: Policy) -> Any:
        if request.encoding == "none":
            return self._data.training
        epochs = self._encodings.epochs(law_of(request), max_exposures=policy.max_update_exposures)

        def next_epoch() -> Any:
            try:
                return epochs.next_epoch()
            except RefusedError as error:
                raise BudgetError(error.message, hint=error.hint) from error

        return next_epoch

    def _refused(self, kind: str, settings: Mapping[str, Any], error: InstaHideError) -> SiteReply:
        refusal_kind = kind_of_refusal(error)
        logger.warning("refused (%s): %s", refusal_kind, error.message)
        reply = refusal(self.site_name, error.message, error.hint, refusal_kind)
        assert reply.refusal is not None
        try:
            return replace(reply, audit_head=self._audit.refused(kind, settings, reply.refusal).to_text())
        except AuditFailedError as failure:
            logger.warning("%s", failure.message)
            return reply


def _is_private(request: RoundRequest) -> bool:
    return request.kind == TRAIN and request.differential_privacy == "example"


def _stop_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise CancelledTaskError("the work was abandoned", hint="ask again")

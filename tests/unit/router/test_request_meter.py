import asyncio
from contextlib import suppress

import pytest

from headrace.contract.errors import QueueFull
from headrace.contract.generation import GenerationRequest
from headrace.router.request_meter import RequestKind, RequestMeter
from headrace.router.tenant import OTHER_TENANTS, TENANT_LIMIT, TenantNames


class Clock:
    """Says what the test says."""

    now_s = 0.0

    def now(self) -> float:
        return self.now_s


def outcome_of(error: BaseException | None, *, deadline_s: float | None = None) -> str:
    clock = Clock()
    meter = RequestMeter(clock)
    with (
        suppress(BaseException),
        meter.open(RequestKind.GENERATE, GenerationRequest(prompt=None, deadline_s=deadline_s)),
    ):
        clock.now_s = 2.0
        if error is not None:
            raise error
    [(tenant, kind, outcome)] = meter.ended
    assert (tenant, kind) == ("", RequestKind.GENERATE)
    assert meter.duration_s[RequestKind.GENERATE].sum == 2.0
    return outcome


def test_an_end_without_an_error_is_completion() -> None:
    assert outcome_of(None) == "COMPLETED"


def test_an_error_is_counted_under_its_reason_and_a_bug_as_internal() -> None:
    assert outcome_of(QueueFull("full")) == "QUEUE_FULL"
    assert outcome_of(ZeroDivisionError()) == "INTERNAL"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit()], ids=["cancelled", "closed"])
def test_who_leaves_before_the_deadline_cancels_and_after_it_has_missed_it(error: BaseException) -> None:
    assert outcome_of(error) == "CANCELLED"
    assert outcome_of(error, deadline_s=2.5) == "CANCELLED"
    assert outcome_of(error, deadline_s=2.0) == "DEADLINE_EXCEEDED"


def test_tenants_beyond_the_limit_are_taken_together() -> None:
    names = TenantNames()
    known = [names.bounded(str(number)) for number in range(TENANT_LIMIT)]
    assert known == [str(number) for number in range(TENANT_LIMIT)]
    assert names.bounded("one more") == OTHER_TENANTS
    assert names.bounded("0") == "0"

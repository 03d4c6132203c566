"""Limits of tenants: what is refused, when it makes sense to come back, and how running requests are charged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from headrace.contract.errors import QuotaExceeded
from headrace.router.tenant_quota import UNLIMITED, TenantLimits, TenantQuotas


class SetClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def now(self) -> float:
        return self.now_s


@dataclass
class Running:
    """A request that has generated so many tokens."""

    generated_token_count: int = 0


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def quotas_of(clock: SetClock, limits: Mapping[str, TenantLimits], default: TenantLimits = UNLIMITED) -> TenantQuotas:
    quotas = TenantQuotas(clock)
    quotas.set_limits(limits, default)
    return quotas


def refusal(quotas: TenantQuotas, tenant: str) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        quotas.enter(tenant)
    return caught.value


def test_requests_at_a_time(clock: SetClock) -> None:
    quotas = quotas_of(clock, {"a": TenantLimits(concurrent_request_limit=2)})
    first, second = quotas.enter("a"), quotas.enter("a")
    refused = refusal(quotas, "a")
    assert refused.metadata == {"tenant": "a", "limit": "concurrent_request_limit", "limit_value": "2"}
    assert refused.retry_after_s == 1.0
    quotas.enter("b")
    first.leave()
    with quotas.enter("a"):
        refusal(quotas, "a")
    quotas.enter("a")
    second.leave()


def test_requests_per_minute_come_back_evenly(clock: SetClock) -> None:
    quotas = quotas_of(clock, {"a": TenantLimits(requests_per_minute=30)})
    for _ in range(30):
        quotas.enter("a").leave()
    refused = refusal(quotas, "a")
    assert (refused.metadata["limit"], refused.retry_after_s) == ("requests_per_minute", 2.0)
    assert refusal(quotas, "a").retry_after_s == 2.0  # a refusal costs nothing
    clock.now_s += 2.0
    quotas.enter("a").leave()
    refusal(quotas, "a")
    clock.now_s += 3600
    for _ in range(30):
        quotas.enter("a").leave()
    refusal(quotas, "a")


def test_tokens_are_a_debt_that_later_requests_wait_for(clock: SetClock) -> None:
    quotas = quotas_of(clock, {"a": TenantLimits(tokens_per_minute=600)})
    request, running = quotas.enter("a"), Running()
    request.charge(400)
    request.watch(running)  # type: ignore[arg-type]  # all that is asked of it
    running.generated_token_count = 199
    quotas.enter("a").leave()
    running.generated_token_count = 800
    refused = refusal(quotas, "a")
    assert refused.metadata["limit"] == "tokens_per_minute"
    assert refused.retry_after_s == pytest.approx((1 + 600) / 10)
    running.generated_token_count = 900
    request.leave()
    assert refusal(quotas, "a").retry_after_s == pytest.approx((1 + 700) / 10)
    clock.now_s += 70.1
    quotas.enter("a").leave()


def test_whoever_comes_back_when_told_is_let_in(clock: SetClock) -> None:
    quotas = quotas_of(clock, {"a": TenantLimits(tokens_per_minute=7, requests_per_minute=11)})
    for charge in (30, 90, 11, 17, 29, 250):
        quotas.enter("a").charge(charge)
        clock.now_s += refusal(quotas, "a").retry_after_s or 0.0
        quotas.enter("a").leave()
        clock.now_s += 60.0


def test_tokens_within_the_rate_never_add_up_to_a_debt(clock: SetClock) -> None:
    quotas = quotas_of(clock, {"a": TenantLimits(tokens_per_minute=600)})
    running = Running()
    quotas.enter("a").watch(running)  # type: ignore[arg-type]
    for _ in range(600):
        clock.now_s += 1.0
        running.generated_token_count += 10
        quotas.settle()
    quotas.enter("a")


def test_limits_are_replaced_while_requests_run(clock: SetClock) -> None:
    quotas = quotas_of(clock, {}, TenantLimits(concurrent_request_limit=1))
    request = quotas.enter("a")
    refusal(quotas, "a")
    quotas.set_limits({"a": TenantLimits(concurrent_request_limit=2)}, UNLIMITED)
    other = quotas.enter("a")
    refusal(quotas, "a")
    quotas.set_limits({}, UNLIMITED)
    for entered in [quotas.enter("a") for _ in range(50)]:
        entered.leave()
    request.leave()
    other.leave()
    quotas.set_limits({}, TenantLimits(tokens_per_minute=10))
    quotas.enter("a").charge(10)
    refusal(quotas, "a")


def test_what_was_used_is_not_forgiven_by_a_reload_that_changes_nothing(clock: SetClock) -> None:
    limits: dict[str, Any] = {"a": TenantLimits(tokens_per_minute=10)}
    quotas = quotas_of(clock, limits)
    quotas.enter("a").charge(10)
    quotas.set_limits(limits, UNLIMITED)
    refusal(quotas, "a")

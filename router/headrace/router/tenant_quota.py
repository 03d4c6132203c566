"""What each tenant may use of the router: requests at a time, and requests and tokens per minute.

The rates are token buckets that hold one minute's worth: what was not used is
kept for a minute, and no longer. A request is let in while something is left of
its tenant's tokens, and then runs to its end, since half an answer would be
wasted; what it takes beyond that is a debt that later requests wait for.

Generated tokens are charged for all requests of a tenant together: whenever one
comes or ends, and every second between. So a token costs nothing where it is
drawn. Each router counts for itself.
"""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from headrace.contract.clock import Clock
from headrace.contract.errors import QuotaExceeded
from headrace.router.running_request import RunningRequest

SETTLE_INTERVAL_S: Final = 1.0
"""The longest time between two charges for the tokens of running requests."""
_ROUNDING: Final = 1e-6
"""Who comes back exactly when told must not be a rounding error short."""
RETRY_WHEN_BUSY_S: Final = 1.0
"""What a tenant with too many requests at a time is told: nobody knows when one of them ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What one tenant may use. None does not limit."""

    concurrent_request_limit: int | None = None
    """Requests between their arrival and their end."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt tokens, cached ones included, and generated tokens together."""


UNLIMITED: Final = TenantLimits()


class Allowance:
    """How much of a rate is left."""

    __slots__ = ("_filled_s", "_level", "_per_minute")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    def take(self, amount: int, now_s: float) -> None:
        """Takes an amount, whether or not so much is left."""
        gained = (now_s - self._filled_s) * self._per_minute / 60
        # Together, since what was gained meanwhile may have been used meanwhile, before it could overflow.
        self._level = min(float(self._per_minute), self._level + gained - amount)
        self._filled_s = now_s

    def wait_s(self) -> float:
        """Returns how long to wait until a whole one is left; 0 if there is. Call `take` first."""
        missing = 1 - self._level
        return missing * 60 / self._per_minute if missing > _ROUNDING else 0.0


class TenantPass:
    """One request's leave to be here, until `leave` is called or the block ends that it is used as a context for."""

    __slots__ = ("_account", "_charged_count", "_running")

    def __init__(self, account: "_Account") -> None:
        self._account = account
        self._running: list[RunningRequest] = []
        self._charged_count = 0

    def charge(self, token_count: int) -> None:
        """Charges the tokens of a prompt."""
        self._account.charge(token_count)

    def watch(self, running: RunningRequest) -> None:
        """Charges what is generated from now on."""
        self._running.append(running)

    def leave(self) -> None:
        """Ends the request, and charges what it has generated since the last time. Call it once."""
        self._account.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.leave()

    def take_uncharged(self) -> int:
        """Returns how many tokens were generated since the last time."""
        count = sum(running.generated_token_count for running in self._running)
        uncharged_count, self._charged_count = count - self._charged_count, count
        return uncharged_count


class _Account:
    """What one tenant has used."""

    def __init__(self, tenant: str, limits: TenantLimits, clock: Clock) -> None:
        self.limits = limits
        self._tenant = tenant
        self._clock = clock
        self._passes: set[TenantPass] = set()
        self._requests: Allowance | None = None
        self._tokens: Allowance | None = None
        self.set_limits(limits)

    @property
    def is_idle(self) -> bool:
        """Whether none of its requests is here."""
        return not self._passes

    def set_limits(self, limits: TenantLimits) -> None:
        """Applies limits from now on; a rate that is not what it was starts with a full minute."""
        now_s = self._clock.now()
        if self._requests is None or limits.requests_per_minute != self.limits.requests_per_minute:
            self._requests = Allowance(limits.requests_per_minute, now_s) if limits.requests_per_minute else None
        if self._tokens is None or limits.tokens_per_minute != self.limits.tokens_per_minute:
            self._tokens = Allowance(limits.tokens_per_minute, now_s) if limits.tokens_per_minute else None
        self.limits = limits

    def enter(self) -> TenantPass:
        """Lets a request in.

        Raises:
            QuotaExceeded: a limit is reached.
        """
        limit, count = self.limits.concurrent_request_limit, len(self._passes)
        if limit is not None and count >= limit:
            raise self._refusal("concurrent_request_limit", f"{count} of its requests are here", RETRY_WHEN_BUSY_S)
        now_s = self._clock.now()
        if self._requests is not None:
            self._requests.take(0, now_s)
            if wait_s := self._requests.wait_s():
                raise self._refusal("requests_per_minute", "it has used them up", wait_s)
        self.settle()
        if self._tokens is not None and (wait_s := self._tokens.wait_s()):
            raise self._refusal("tokens_per_minute", "it has used them up", wait_s)
        if self._requests is not None:
            self._requests.take(1, now_s)
        entered = TenantPass(self)
        self._passes.add(entered)
        return entered

    def charge(self, token_count: int) -> None:
        """Charges tokens."""
        if self._tokens is not None:
            self._tokens.take(token_count, self._clock.now())

    def settle(self) -> None:
        """Charges what the running requests have generated since the last time."""
        self.charge(sum(entered.take_uncharged() for entered in self._passes))

    def leave(self, entered: TenantPass) -> None:
        """Lets a request go."""
        self.charge(entered.take_uncharged())
        self._passes.remove(entered)

    def _refusal(self, name: str, why: str, wait_s: float) -> QuotaExceeded:
        limit = getattr(self.limits, name)
        return QuotaExceeded(
            f"tenant {self._tenant!r} may have {limit} {_WORDS[name]}, and {why}",
            # Rounded up, so that who comes back in time is not a moment early.
            retry_after_s=math.ceil(wait_s * 1000) / 1000,
            metadata={"tenant": self._tenant, "limit": name, "limit_value": str(limit)},
        )


_WORDS: Final = {
    "concurrent_request_limit": "requests at a time",
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
}


class TenantQuotas:
    """The accounts of all tenants. Use on one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limits: Mapping[str, TenantLimits] = {}
        self._default = UNLIMITED
        self._accounts: dict[str, _Account] = {}

    def set_limits(self, limits: Mapping[str, TenantLimits], default: TenantLimits) -> None:
        """Applies limits from now on: those of named tenants, and those of each of the others."""
        self._limits, self._default = dict(limits), default
        for tenant, account in list(self._accounts.items()):
            if account.is_idle and tenant not in limits and default == UNLIMITED:
                del self._accounts[tenant]
            else:
                account.set_limits(self._limits_of(tenant))

    def enter(self, tenant: str) -> TenantPass:
        """Lets a request of a tenant in.

        Raises:
            QuotaExceeded: a limit is reached; says which, and when to come back.
        """
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(tenant, self._limits_of(tenant), self._clock)
        return account.enter()

    async def run(self) -> None:
        """Charges running requests until cancelled."""
        while True:
            await asyncio.sleep(SETTLE_INTERVAL_S)
            self.settle()

    def settle(self) -> None:
        """Charges what all running requests have generated since the last time."""
        for account in self._accounts.values():
            account.settle()

    def _limits_of(self, tenant: str) -> TenantLimits:
        return self._limits.get(tenant, self._default)

"""Counts the requests of a router: how they ended, how long they took and how many tokens they held."""

import asyncio
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from headrace.contract.clock import Clock
from headrace.contract.embedding import EmbeddingRequest
from headrace.contract.errors import DeadlineExceeded, HeadraceError
from headrace.contract.generation import FinishReason, GenerationFinished, GenerationRequest
from headrace.contract.histogram import Histogram
from headrace.router.step_profile import GAP_BOUNDS_S
from headrace.router.tenant import TenantNames

REQUEST_BOUNDS_S: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Buckets for a whole request."""
PREPARE_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Buckets for what is done to a request before it waits."""
LENGTH_BOUNDS: Final = tuple(2.0**power for power in range(18))
"""Buckets for tokens of a request: 1, 2, 4, ... 131072."""

COMPLETED: Final = "COMPLETED"
CANCELLED: Final = "CANCELLED"


class RequestKind(StrEnum):
    """What a request asks for."""

    GENERATE = "generate"
    EMBED = "embed"


class RequestMeter:
    """Counts requests when they end. For reading, on the event loop that serves them."""

    def __init__(self, clock: Clock) -> None:
        self.ended: Final = Counter[tuple[str, RequestKind, str]]()
        """Requests by tenant, kind and outcome: `COMPLETED`, `CANCELLED` or the reason of an error."""
        self.prompt_token_count: Final = Counter[str]()
        """Prompt tokens of ended requests by tenant."""
        self.generated_token_count: Final = Counter[str]()
        """Generated tokens of ended requests by tenant, those of completions that `best_of` left out included."""
        self.completion_count: Final = Counter[FinishReason]()
        """Completions that ended normally."""
        self.duration_s: Final = {kind: Histogram(REQUEST_BOUNDS_S) for kind in RequestKind}
        """From the arrival of a request to its end, however it ended."""
        self.running_s: Final = Histogram(REQUEST_BOUNDS_S)
        """From the first step of a request that generates to its last token."""
        self.token_mean_s: Final = Histogram(GAP_BOUNDS_S)
        """The mean time between the tokens of a request with one completion of two or more tokens."""
        self.prompt_length: Final = Histogram(LENGTH_BOUNDS)
        """Of requests whose tokens are known."""
        self.generated_length: Final = Histogram(LENGTH_BOUNDS)
        self.asked_length: Final = Histogram(LENGTH_BOUNDS)
        """The most tokens that a completion may have. Both of requests that generate and were submitted."""
        self.tokenize_s: Final = Histogram(PREPARE_BOUNDS_S)
        """From a prompt to its token ids, the wait for a thread included."""
        self.grammar_s: Final = Histogram(PREPARE_BOUNDS_S)
        """From a constraint to its grammar, the wait for those before it included; a kept answer counts, too."""
        self.tell: "EndListener | None" = None
        """Told of each request that ended: itself, its outcome, and the moment on the clock."""
        self._clock = clock
        self._tenants = TenantNames()

    def open(self, kind: RequestKind, request: GenerationRequest | EmbeddingRequest) -> "MeteredRequest":
        """Returns a context manager to run a request in."""
        return MeteredRequest(self, self._clock, kind, self._tenants.bounded(request.tenant), request)


class MeteredRequest:
    """One request, from its arrival to its end."""

    __slots__ = (
        "_clock",
        "_kind",
        "_meter",
        "_tenant",
        "max_new_token_count",
        "prompt_token_count",
        "received_s",
        "request",
        "request_id",
        "submitted_s",
        "summary",
    )

    def __init__(
        self,
        meter: RequestMeter,
        clock: Clock,
        kind: RequestKind,
        tenant: str,
        request: GenerationRequest | EmbeddingRequest,
    ) -> None:
        self._meter = meter
        self._clock = clock
        self._kind = kind
        self._tenant = tenant
        self.request: Final = request
        """As it was asked."""
        self.received_s: Final = clock.now()
        self.request_id = ""
        """Its own or the one that was made for it; empty for one that was not taken in."""
        self.submitted_s: float | None = None
        """When its sequences could run; None for one that did not come so far."""
        self.prompt_token_count = 0
        """Set when the tokens are known."""
        self.max_new_token_count = 0
        self.summary: GenerationFinished | None = None
        """Set when it ends, however it does; None for one that was not submitted, and for vectors."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        meter, tenant = self._meter, self._tenant
        now_s = self._clock.now()
        outcome = self._outcome(error, now_s)
        meter.ended[tenant, self._kind, outcome] += 1
        meter.duration_s[self._kind].observe(now_s - self.received_s)
        if self.prompt_token_count:
            meter.prompt_token_count[tenant] += self.prompt_token_count
            meter.prompt_length.observe(self.prompt_token_count)
        if self.summary is not None:
            self._count_generation(self.summary)
        if meter.tell is not None:
            meter.tell(self, outcome, now_s)

    def _count_generation(self, summary: GenerationFinished) -> None:
        meter, timings, token_count = self._meter, summary.timings, summary.usage.generated_token_count
        meter.completion_count.update(end.reason for end in summary.ends)
        meter.generated_token_count[self._tenant] += token_count
        meter.generated_length.observe(token_count)
        meter.asked_length.observe(self.max_new_token_count)
        if token_count > 0:
            meter.running_s.observe(timings.prefill_s + timings.decode_s)
        if token_count > 1 and len(summary.ends) == 1:
            meter.token_mean_s.observe(timings.decode_s / (token_count - 1))

    def _outcome(self, error: BaseException | None, now_s: float) -> str:
        match error:
            case None:
                ends = () if self.summary is None else self.summary.ends
                return CANCELLED if any(end.reason is FinishReason.CANCELLED for end in ends) else COMPLETED
            case HeadraceError():
                return error.reason
            case asyncio.CancelledError() | GeneratorExit():
                # The deadline is the transport's: it takes the call back a moment before or after our own timer.
                is_late = self.request.deadline_s is not None and now_s >= self.request.deadline_s
                return DeadlineExceeded.reason if is_late else CANCELLED
            case _:
                return HeadraceError.reason


EndListener = Callable[[MeteredRequest, str, float], None]
"""Takes a request that ended, its outcome and when that was, on the clock of the meter."""

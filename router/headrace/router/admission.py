"""The bounded waiting room: who may wait, and when those turned away should come back."""

from dataclasses import dataclass

from headrace.contract.clock import Clock
from headrace.contract.errors import QueueFull

FIRST_GUESS_S = 1.0
"""Time between two departures, as long as none has been seen."""

SMOOTHING = 0.2
"""Weight of the newest gap between departures in their running mean."""

SHORTEST_HINT_S = 0.05
LONGEST_HINT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """How much may wait."""

    waiting_request_limit: int
    """Most completions between the arrival of their request and their first step."""
    waiting_token_limit: int
    """Most prompt tokens that their requests may hold together."""


class Permit:
    """One request's places in the waiting room: one for each completion, until its first step or the request's end."""

    __slots__ = ("_admission", "_place_count", "_tenant", "_token_count")

    def __init__(self, admission: "Admission", tenant: str, place_count: int) -> None:
        self._admission = admission
        self._tenant = tenant
        self._place_count = place_count
        self._token_count = 0

    def charge(self, token_count: int) -> None:
        """Books the prompt's tokens, known only after tokenizing.

        Raises:
            QueueFull: they do not fit beside those that wait. The permit stays valid.
        """
        self._admission.charge(self._tenant, token_count)
        self._token_count = token_count

    def start(self) -> None:
        """Frees the place of a completion that was given its first step; with the first of them, the tokens too."""
        if self._place_count > 0:
            self._leave(1, has_started=True)

    def release(self) -> None:
        """Frees what is left. Safe to repeat."""
        if self._place_count > 0:
            self._leave(self._place_count, has_started=False)

    def _leave(self, place_count: int, *, has_started: bool) -> None:
        token_count, self._token_count = self._token_count, 0
        self._place_count -= place_count
        self._admission.leave(self._tenant, place_count, token_count, has_started=has_started)


@dataclass(slots=True)
class _Part:
    """What one tenant has of the room."""

    place_count: int = 0
    token_count: int = 0


class Admission:
    """Counts who waits, and tells those it turns away when to return.

    One tenant may fill the room. Another one that comes then is let in all the
    same, up to an even part of the room: the limit by the number of tenants
    that wait. So a burst turns nobody away but its own tenant; and since the k-th largest part is never above a
    k-th of the limit, n tenants hold 1 + 1/2 + ... + 1/n times the limit at most.

    The hint is computed from the queue: a place becomes free when a waiting
    completion starts, so the k-th caller turned away since then is told k times
    the mean gap between starts. That spreads the callers out by itself, where
    one number for all would bring them back in a herd.
    """

    def __init__(self, limits: AdmissionLimits, clock: Clock) -> None:
        self.limits = limits
        self._clock = clock
        self._waiting_count = 0
        self._waiting_token_count = 0
        self._parts: dict[str, _Part] = {}
        """By tenant; none is empty."""
        self._turned_away_count = 0
        self._start_gap_s = FIRST_GUESS_S
        self._last_start_s: float | None = None

    @property
    def waiting_count(self) -> int:
        """Completions that wait."""
        return self._waiting_count

    @property
    def waiting_token_count(self) -> int:
        """Prompt tokens that wait."""
        return self._waiting_token_count

    @property
    def expected_wait_s(self) -> float:
        """How long a request that came now would wait, by the pace of late."""
        return self._waiting_count * self._start_gap_s

    def enter(self, completion_count: int = 1, *, tenant: str = "") -> Permit:
        """Takes a place for each completion of a tenant's request.

        A request for more completions than the limit is let in when nothing
        else waits: it would wait forever otherwise.

        Raises:
            QueueFull: `waiting_request_limit` would be exceeded.
        """
        limit = self.limits.waiting_request_limit
        is_full = self._waiting_count + completion_count > limit and (self._waiting_count > 0 or completion_count == 1)
        if is_full and self._part_of(tenant).place_count + completion_count > self._even_part(limit, tenant):
            more = f", {completion_count} more would be too many" if completion_count > 1 else ""
            raise self._turn_away(f"{self._waiting_count} requests are waiting, the limit is {limit}{more}")
        if self._waiting_count == 0:
            # The gap to a start long ago says how idle we were, not how fast we are.
            self._last_start_s = self._clock.now()
        self._waiting_count += completion_count
        self._parts.setdefault(tenant, _Part()).place_count += completion_count
        return Permit(self, tenant, completion_count)

    def charge(self, tenant: str, token_count: int) -> None:
        """Books tokens for a permit.

        A request longer than the limit is let in when nothing else waits: it
        would wait forever otherwise.

        Raises:
            QueueFull: the tokens that wait would exceed `waiting_token_limit`.
        """
        limit = self.limits.waiting_token_limit
        total = self._waiting_token_count + token_count
        is_full = total > limit and self._waiting_token_count > 0
        if is_full and self._part_of(tenant).token_count + token_count > self._even_part(limit, tenant):
            raise self._turn_away(
                f"{self._waiting_token_count} prompt tokens are waiting, "
                f"{token_count} more would exceed the limit of {limit}"
            )
        self._waiting_token_count = total
        self._parts[tenant].token_count += token_count

    def leave(self, tenant: str, place_count: int, token_count: int, *, has_started: bool) -> None:
        """Takes places back."""
        part = self._parts[tenant]
        part.place_count -= place_count
        part.token_count -= token_count
        if part.place_count == 0:
            del self._parts[tenant]
        self._waiting_count -= place_count
        self._waiting_token_count -= token_count
        self._turned_away_count = 0
        if has_started:
            now = self._clock.now()
            if self._last_start_s is not None:
                gap_s = now - self._last_start_s
                self._start_gap_s += SMOOTHING * (gap_s - self._start_gap_s)
            self._last_start_s = now

    def _part_of(self, tenant: str) -> _Part:
        return self._parts.get(tenant, _Part())

    def _even_part(self, limit: int, tenant: str) -> int:
        """Returns what each tenant may have of a limit for sure, this one among those that wait."""
        return limit // (len(self._parts) + (tenant not in self._parts))

    def _turn_away(self, why: str) -> QueueFull:
        self._turned_away_count += 1
        hint_s = self._turned_away_count * self._start_gap_s
        return QueueFull(
            f"the waiting queue is full: {why}",
            retry_after_s=min(max(hint_s, SHORTEST_HINT_S), LONGEST_HINT_S),
            metadata={
                "waiting_count": str(self._waiting_count),
                "waiting_token_count": str(self._waiting_token_count),
            },
        )

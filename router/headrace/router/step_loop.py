"""Drives one scheduler and one engine: the only writer of the scheduler's state.

Everybody else leaves requests and cancellations in two lists and rings a bell.
Both lists are bounded by admission: a request is in the first at most once, and
in the second at most once after it.

The sequences of one request share its prompt through the prefix cache: the first
one computes it, and the others are submitted when it has its first token, since
the full blocks of the prompt are committed then. Each of the others computes the
rest of the prompt, at most a block, again.

The loop wakes for a result, a request or a cancellation, and then does, in this
order: take results into the scheduler; take cancellations, requests and passed
deadlines; plan and send as many steps as may be in flight; only then turn the
new tokens into text, while the engine is already computing the next ones.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from headrace.contract.clock import Clock
from headrace.contract.engine import StepEngine
from headrace.contract.errors import DeadlineExceeded, HeadraceError, PlanRejected, RequestRefused, ShardLost
from headrace.contract.step import StepResult
from headrace.router.reporting import Report
from headrace.router.running_request import RunningRequest
from headrace.router.scheduler import Scheduler, SequenceUpdate
from headrace.router.sequence import Sequence
from headrace.router.step_profile import StepProfiler


class SentStep(NamedTuple):
    """A step that the engine has not answered."""

    result: asyncio.Future[StepResult]
    sent_s: float


class StepLoop:
    """Runs the requests of one replica for as long as its engine lives."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        engine: StepEngine,
        clock: Clock,
        step_timeout_s: float,
        report: Report,
        profiler: StepProfiler,
    ) -> None:
        self.scheduler = scheduler
        """For reading; only the loop's own task changes it."""
        self._engine = engine
        self._clock = clock
        self._step_timeout_s = step_timeout_s
        self._report = report
        self._profiler = profiler
        self._requests: dict[int, RunningRequest] = {}
        """By the ids of all their sequences that the scheduler has."""
        self._followers: dict[int, tuple[Sequence, ...]] = {}
        """By the id of the sequence whose first token they wait for."""
        self._arrivals: list[RunningRequest] = []
        self._departures: list[RunningRequest] = []
        self._in_flight: deque[SentStep] = deque()
        self._delivered_s = -1.0
        """When tokens were delivered last."""
        self._failure: BaseException | None = None
        self._bell = asyncio.Event()

    @property
    def request_count(self) -> int:
        """Requests that have not ended."""
        return len(set(self._requests.values())) + len(self._arrivals)

    @property
    def arriving_token_count(self) -> int:
        """Tokens of requests that the scheduler has not seen yet."""
        return sum(len(sequence.token_ids) for active in self._arrivals for sequence in active.open_sequences[:1])

    def submit(self, active: RunningRequest) -> None:
        """Hands a request over. Its stream tells everything that follows."""
        self._arrivals.append(active)
        self._bell.set()

    def cancel(self, active: RunningRequest) -> None:
        """Drops a request; its KV blocks are free before the next plan. Safe to repeat and for ended ones."""
        self._departures.append(active)
        self._bell.set()

    async def run(self) -> ShardLost:
        """Runs until the engine is lost, and returns why. Call once; then `abandon`."""
        lost = asyncio.ensure_future(self._engine.wait_lost())
        lost.add_done_callback(lambda _: self._bell.set())
        try:
            while not lost.done():
                self._bell.clear()
                updates = self._take_results()
                if self._failure is None:
                    self._take_commands()
                    self._send_plans()
                # The scheduler holds these tokens already: they are delivered even if the next step failed.
                self._deliver(updates)
                if self._failure is not None:
                    raise self._failure
                await self._wait_for_bell()
            return lost.result()
        except (ShardLost, PlanRejected, TimeoutError) as error:
            return self._explain(error)
        finally:
            lost.cancel()

    def abandon(self) -> list[RunningRequest]:
        """Gives back every request after the engine was lost, those that may not run again already failed."""
        for sequence in self.scheduler.lose_engine():
            self._requests[sequence.sequence_id].fail(
                RequestRefused("the model server died each time it ran this request")
            )
        survivors = [self._requests[sequence.sequence_id] for sequence in self.scheduler.evacuate()]
        gone = set(self._departures)
        survivors = [
            active
            for active in dict.fromkeys([*survivors, *self._arrivals])
            if active not in gone and not active.has_ended
        ]
        self._requests.clear()
        self._followers.clear()
        self._arrivals.clear()
        self._departures.clear()
        return survivors

    def _take_results(self) -> list[SequenceUpdate]:
        updates: list[SequenceUpdate] = []
        while self._in_flight and self._in_flight[0].result.done():
            step = self._in_flight.popleft()
            self._failure = step.result.exception()
            if self._failure is not None:
                break
            result = step.result.result()
            updates.extend(self.scheduler.apply(result))
            self._profiler.add(result.timings, sent_s=step.sent_s, answered_s=self._clock.now())
        if self._followers:
            self._submit_followers(updates)
        return updates

    def _submit_followers(self, updates: list[SequenceUpdate]) -> None:
        """Submits the sequences whose prompt was computed for them."""
        for update in updates:
            if update.token_ids and update.sequence.sequence_id in self._followers:
                self._submit(
                    self._requests[update.sequence.sequence_id], self._followers.pop(update.sequence.sequence_id)
                )

    def _take_commands(self) -> None:
        now_s = self._clock.now()
        arrivals, self._arrivals = self._arrivals, []
        for active in arrivals:
            self._begin(active)
        departures, self._departures = self._departures, []
        for active in departures:
            self._drop(active.sequences)
        for sequence in self.scheduler.expire(now_s):
            expired = self._requests.get(sequence.sequence_id)
            if expired is not None:  # another sequence of the same request came first
                expired.fail(DeadlineExceeded("the deadline passed"))
                self._drop(expired.sequences)

    def _begin(self, active: RunningRequest) -> None:
        """Submits what a request still has to generate, first of all what computes the prompt for the rest."""
        if active.has_ended:
            return
        first, *others = active.open_sequences
        # The log-probabilities of the prompt come with the first one alone, and the reader gets them before any token.
        if others and (first.wants_prompt_logprobs or self.scheduler.has_prompt_to_share(first.request)):
            self._followers[first.sequence_id] = tuple(others)
            others = []
        self._submit(active, (first, *others))

    def _submit(self, active: RunningRequest, sequences: Iterable[Sequence]) -> None:
        try:
            for sequence in sequences:
                self.scheduler.submit(sequence)
                self._requests[sequence.sequence_id] = active
        except HeadraceError as error:
            active.fail(error)
            self._drop(active.sequences)

    def _drop(self, sequences: Iterable[Sequence]) -> None:
        """Takes sequences out, wherever they are; their KV blocks are free before the next plan. Safe to repeat."""
        for sequence in sequences:
            self._requests.pop(sequence.sequence_id, None)
            self._followers.pop(sequence.sequence_id, None)
            if self.scheduler.cancel(sequence.sequence_id) is not None:
                self._bell.set()

    def _send_plans(self) -> None:
        while (planned := self.scheduler.plan()) is not None:
            future = asyncio.ensure_future(self._engine.step(planned.plan))
            future.add_done_callback(lambda _: self._bell.set())
            now_s = self._clock.now()
            self._in_flight.append(SentStep(future, now_s))
            self._profiler.row_count.observe(planned.row_count)
            self._profiler.token_count.observe(planned.token_count)
            for sequence in planned.started:
                self._profiler.add_start(sequence, now_s)
                self._requests[sequence.sequence_id].start(now_s)

    def _deliver(self, updates: list[SequenceUpdate]) -> None:
        if not updates:
            return
        now_s, last_s = self._clock.now(), self._delivered_s
        self._delivered_s = now_s
        steady_count = 0
        for update in updates:
            sequence = update.sequence
            active = self._requests.get(sequence.sequence_id)
            if active is None:  # cancelled between the result and now
                continue
            if update.token_ids:
                # Rows that decode together waited for the same time, which is counted once for all of them.
                if sequence.last_token_s == last_s and len(update.token_ids) == 1:
                    steady_count += 1
                else:
                    self._profiler.add_tokens(sequence, len(update.token_ids), now_s)
                sequence.last_token_s = now_s
            if update.error is not None:
                self._report(
                    "row_failed", request_id=active.request.request_id, reason=update.error.reason,
                    detail=update.error.detail,
                )  # fmt: skip
            if active.advance(update, now_s):
                # A stop sequence ends what the shard would go on with, and an error what is left of the request.
                self._drop(active.sequences if active.has_ended else (sequence,))
        if steady_count:
            self._profiler.token_gap_s.observe(now_s - last_s, steady_count)

    async def _wait_for_bell(self) -> None:
        if not self._in_flight:
            await self._bell.wait()
            return
        remaining_s = self._in_flight[0].sent_s + self._step_timeout_s - self._clock.now()
        async with asyncio.timeout(remaining_s):
            await self._bell.wait()

    def _explain(self, error: ShardLost | PlanRejected | TimeoutError) -> ShardLost:
        if isinstance(error, ShardLost):
            return error
        if isinstance(error, PlanRejected):
            self._report("plan_rejected", detail=error.message)
            return ShardLost(f"the shard refused a plan: {error.message}")
        return ShardLost(f"no answer to a step for {self._step_timeout_s:g} s")

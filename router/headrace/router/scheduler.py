"""Decides who computes what in every step, and where its KV goes.

The scheduler is a pure library: no clock, no await, no input or output, no
chance. Its caller asks for a plan, hands it to an engine, brings the engine's
result back, and submits and cancels in between.

A plan is made in three passes over the tokens that one step may compute:

1. every row that needs one token gets it, and a KV block if its last one is
   full; when no block is left, the least urgent rows give way until one is;
2. rows that need more (prompts, or what a preemption threw away) get a chunk
   of what is left, the most urgent first;
3. waiting sequences join while tokens, rows and blocks last: tenants in turn,
   the most urgent of each first.

So a long prompt slows the others' decoding by one step's tokens at most, and
never stops it. An admission leases the blocks for all tokens that a sequence
has, so only pass 1 needs memory and only pass 1 preempts.

A sequence that may be what a shard died of is a suspect (see `lose_engine`).
While one is in the batch nobody joins it: so a request that kills shards is
refused after the second one, and nobody is refused in its place.
"""

from collections import Counter, deque
from dataclasses import replace
from functools import partial

from headrace.contract.errors import ShardLost
from headrace.contract.generation import ValidRequest
from headrace.contract.step import StepResult
from headrace.router import policy
from headrace.router.block_table import BlockTable
from headrace.router.digest_chain import DigestChain
from headrace.router.kv_memory import KvMemory
from headrace.router.planned_step import PlannedStep
from headrace.router.policy import SchedulerLimits
from headrace.router.probation import Probation
from headrace.router.row import Row
from headrace.router.sequence import Sequence, SequenceState
from headrace.router.sequence_queue import SequenceQueue
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.stats import SchedulerCounters, SchedulerStats
from headrace.router.step_draft import StepDraft
from headrace.router.tenant_shares import TenantShares
from headrace.router.unanswered_step import UnansweredStep
from headrace.router.waiting_queue import WaitingQueue

__all__ = ["LOSS_LIMIT", "PlannedStep", "Scheduler", "SchedulerLimits", "SequenceUpdate"]

LOSS_LIMIT = 2
"""A sequence that so many shards in a row died with is refused."""


class Scheduler:
    """Owns the batch, the queue and the KV blocks of one engine. For one task; not safe for threads."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._kv = KvMemory(block_size=limits.block_size, block_count=limits.block_count)
        self._sequences: dict[int, Sequence] = {}
        self._chains: dict[int, DigestChain] = {}
        self._deadlines = SequenceQueue(_deadline_s)
        self._rows: dict[int, Row] = {}
        """By sequence id. A dict keeps the order just as the row rule asks: leaving moves nobody, joining appends."""
        self._shares = TenantShares(self._rows)
        self._waiting = WaitingQueue(partial(policy.urgency, limits=limits), self._shares)
        self._released_ids: list[int] = []
        """Rows that left since the last plan; the next one says so."""
        self._unanswered: deque[UnansweredStep] = deque()
        self._step_id = 0
        """The last step planned."""
        self._answered_step_id = 0
        """The last step that was answered, or whose answer will never come."""
        self._probation = Probation()
        self._counters = SchedulerCounters()

    @property
    def has_work(self) -> bool:
        """Whether a sequence has not ended, or a row left that the shard does not know of."""
        return bool(self._sequences or self._released_ids)

    @property
    def in_flight_count(self) -> int:
        """Steps that are unanswered."""
        return len(self._unanswered)

    def submit(self, sequence: Sequence) -> None:
        """Queues a waiting sequence, one that ran elsewhere included: its tokens so far are kept.

        Raises:
            InvalidRequest: it could never run to its end.
        """
        policy.require_fit(sequence, self._limits)
        assert sequence.state is SequenceState.WAITING, sequence
        assert sequence.sequence_id not in self._sequences, sequence
        self._sequences[sequence.sequence_id] = sequence
        self._chains[sequence.sequence_id] = DigestChain.of(sequence.request, self._limits.block_size)
        self._waiting.push(sequence)
        if sequence.request.deadline_s is not None:
            self._deadlines.push(sequence)

    def cancel(self, sequence_id: int) -> Sequence | None:
        """Ends a sequence and returns it; None if there is none. Safe to repeat.

        Its blocks are free when this returns, and the next plan releases its row.
        Tokens that are still on their way are dropped.
        """
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            self._end(sequence)
        return sequence

    def expire(self, now_s: float) -> list[Sequence]:
        """Ends every sequence whose deadline has come, waiting or running, and returns them."""
        expired: list[Sequence] = []
        while (sequence := self._deadlines.head) is not None and _deadline_s(sequence) <= now_s:
            self._end(sequence)
            expired.append(sequence)
        return expired

    def plan(self) -> PlannedStep | None:
        """Decides the next step. None if as many as allowed are unanswered, or if there is nothing to do.

        What it returns counts as sent: plans go to the engine in this order, all of them.
        """
        if len(self._unanswered) >= self._limits.steps_in_flight:
            return None
        draft = StepDraft(self._limits.step_token_limit)
        lagging = self._continue_decoding(draft)
        self._continue_chunks(draft, lagging)
        self._admit(draft)
        if len(self._rows) == draft.held_count and not self._released_ids:
            return None
        return self._send(draft)

    def apply(self, result: StepResult) -> list[SequenceUpdate]:
        """Takes the result of the oldest unanswered step; returns its news in the order of the rows.

        A sequence whose row ended or failed is dropped, its blocks freed.

        Raises:
            ShardLost: the result does not fit the step's plan. Nothing of it was applied.
        """
        if not self._unanswered:
            raise ShardLost(f"an answer to step {result.step_id} came, and no step is unanswered")
        step = self._unanswered[0]
        step.require_answer(result)
        self._unanswered.popleft()
        self._answered_step_id = step.step_id
        self._counters.generated_token_count += len(result.token_ids)
        updates = step.receive(result)
        step.count_drafts(result, self._counters)
        if result.ended_rows or result.errors:
            for update in updates:
                if update.end is not None or update.error is not None:
                    self._end(update.sequence)
        return updates

    def lose_engine(self) -> list[Sequence]:
        """Forgets the engine: its batch, its unanswered steps and all KV.

        Every sequence waits again with the tokens that came back. Those that had a
        row in an unanswered step become suspects. Those that were suspects before
        and have not been cleared since are returned: they are ended, and have to
        be refused.

        NOTE: suspects are probed one by one, beside rows that are above suspicion.
        The last of n waits for n - 1 prefills, which is little beside the start of
        a shard. A deadly request is a suspect from its first shard on, so as long
        as there is one such request, its second shard dies in its own probation
        and nobody else's.
        """
        unanswered_counts = Counter(
            row.sequence.sequence_id for step in self._unanswered if not step.is_discarded for row in step.rows
        )
        self._retreat()
        self._released_ids.clear()
        self._unanswered.clear()
        self._answered_step_id = self._step_id
        self._kv = KvMemory(block_size=self._limits.block_size, block_count=self._limits.block_count)
        refused: list[Sequence] = []
        for sequence_id, unanswered_count in unanswered_counts.items():
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                sequence.suspect(unanswered_count * (1 + self._limits.draft_token_limit))
                if sequence.loss_count >= LOSS_LIMIT:
                    self._end(sequence)
                    refused.append(sequence)
        return refused

    def evacuate(self) -> list[Sequence]:
        """Takes every sequence out, to run elsewhere; returns them all waiting, the most urgent first.

        Tokens that are still on their way are dropped; they will be drawn again.
        """
        self._retreat()
        sequences = list(self._waiting)
        for sequence in sequences:
            sequence.unsettled_step_id = 0
        self._waiting.clear()
        self._deadlines.clear()
        self._sequences.clear()
        self._chains.clear()
        self._unanswered = deque(replace(step, is_discarded=True) for step in self._unanswered)
        return sequences

    def match_prefix(self, request: ValidRequest) -> int:
        """Returns how many of a request's tokens the prefix cache holds. Changes nothing."""
        return self._kv.match(request)

    def has_prompt_to_share(self, request: ValidRequest) -> bool:
        """Whether full blocks of a prompt are still to be computed, which further sequences with it could then hit."""
        return self._kv.match(request) < self._kv.shareable_count(request)

    def flush_prefix_cache(self) -> int:
        """Forgets every cached prefix that no running sequence uses; returns how many blocks became free."""
        return self._kv.pool.flush()

    def stats(self) -> SchedulerStats:
        """Returns a snapshot. Cheap: nothing is counted for it."""
        pool = self._kv.pool
        return self._counters.snapshot(
            waiting_count=len(self._waiting),
            waiting_token_count=self._waiting.token_count,
            running_count=len(self._rows),
            in_flight_count=len(self._unanswered),
            leased_block_count=pool.leased_count,
            cached_block_count=pool.cached_count,
            free_block_count=pool.free_count,
            total_block_count=pool.total_count,
        )

    def check_integrity(self) -> None:
        """Checks what must hold between any two calls. Takes time in proportion to all blocks.

        Raises:
            AssertionError: something does not hold; the message lists all of it.
        """
        rows = self._rows.values()
        found = self._kv.violations(row.table for row in rows)
        for row in rows:
            found += row.violations()
        running = {sequence_id: row.sequence for sequence_id, row in self._rows.items()}
        waiting = {sequence.sequence_id: sequence for sequence in self._waiting}
        if running.keys() & waiting.keys() or running | waiting != self._sequences:
            found.append("the sequences are not those that wait and those that run")
        if any(sequence.state is not SequenceState.WAITING for sequence in self._waiting):
            found.append("a sequence in the queue is not waiting")
        if self._chains.keys() != self._sequences.keys():
            found.append("a digest chain outlived its sequence, or the other way round")
        timed = sum(sequence.request.deadline_s is not None for sequence in self._sequences.values())
        if len(self._deadlines) != timed:
            found.append(f"{timed} sequences have a deadline and {len(self._deadlines)} are watched")
        if found:
            raise AssertionError("; ".join(found))

    def _continue_decoding(self, draft: StepDraft) -> list[Row]:
        """Gives a token to every row that needs just one; returns the rows that need more, or none."""
        lagging: list[Row] = []
        # The one loop over all rows that every plan pays for: about 0.3 µs a row.
        for row in tuple(self._rows.values()):
            if row.target_count - row.scheduled_count != 1:
                lagging.append(row)
            elif row.scheduled_count + row.spare_count < row.table.slot_count or self._grow(draft, row):
                row.schedule(1)
        lagging = [row for row in lagging if not row.table.is_released]
        draft.token_budget -= len(self._rows) - len(lagging)
        return lagging

    def _grow(self, draft: StepDraft, row: Row) -> bool:
        """Leases the block for a row's next token, whoever has to give way; False if that is the row itself."""
        block_count = row.table.missing_block_count(row.wanted_slot_count)
        # For drafts it gets what it would like as long as every row could still have a block.
        if block_count + len(self._rows) > self._kv.pool.available_count:
            block_count = row.table.missing_block_count(row.scheduled_count + 1)
        while not row.table.is_released:
            if block_count <= self._kv.pool.available_count:
                if block_count:
                    draft.add_blocks(row, row.table.grow(block_count))
                return True
            self._preempt(draft, policy.choose_victim(self._rows.values(), self._limits))
        return False

    def _preempt(self, draft: StepDraft, row: Row) -> None:
        draft.drop(row)
        self._leave(row)
        self._wait(row.sequence)
        row.sequence.preemption_count += 1
        self._counters.preemption_count += 1

    def _continue_chunks(self, draft: StepDraft, lagging: list[Row]) -> None:
        """Gives rows that need more than a token a chunk, and holds those for which nothing is left or needed."""
        for row in sorted(lagging, key=lambda row: policy.urgency(row.sequence, self._limits)):
            draft.compute(row, self._chunk_of(row, draft))

    def _chunk_of(self, row: Row, draft: StepDraft) -> int:
        is_alone = len(self._sequences) == 1
        return policy.choose_chunk(row, draft.token_budget, self._limits, is_alone=is_alone)

    def _admit(self, draft: StepDraft) -> None:
        """Lets sequences join, strictly in order: nobody overtakes one that does not fit yet.

        Nobody joins in a plan that preempts: the memory is for those that run.
        """
        self._waiting.settle()
        while draft.token_budget > 0 and len(self._rows) < self._limits.running_limit and not draft.has_preempted:
            sequence = self._waiting.head
            if sequence is None or sequence.unsettled_step_id > self._answered_step_id:
                return
            if self._probation.is_going_on(self._answered_step_id):
                return
            table = self._kv.lease(
                self._chains[sequence.sequence_id],
                sequence.token_ids,
                may_hit=not sequence.needs_whole_prompt,
                reserved_count=policy.growth_reserve(self._rows.values()),
            )
            if table is None:
                return
            self._join(draft, sequence, table)

    def _join(self, draft: StepDraft, sequence: Sequence, table: BlockTable) -> None:
        """Moves a sequence from the queue to the end of the batch, with a first chunk."""
        self._waiting.remove(sequence)
        sequence.become(SequenceState.RUNNING)
        sequence.admission_count += 1
        if sequence.admission_count == 1:
            sequence.cached_token_count = table.hit_token_count
            self._counters.prompt_token_count += sequence.request.prompt_token_count
            self._counters.cached_token_count += table.hit_token_count
        self._probation.begin(sequence)
        row = Row(sequence=sequence, table=table, spare_count=policy.spare_slots(sequence.request, self._limits))
        self._rows[sequence.sequence_id] = row
        if sequence.admission_count == 1:
            self._shares.count_prompt(row)
        draft.admit(row)
        draft.compute(row, self._chunk_of(row, draft))

    def _send(self, draft: StepDraft) -> PlannedStep:
        """Fixes the plan, and remembers it until it is answered."""
        self._step_id += 1
        rows = tuple(self._rows.values())
        if self._released_ids or draft.admitted_rows:
            for number, row in enumerate(rows):
                row.number = number
        plan = draft.plan(self._step_id, tuple(self._released_ids))
        self._released_ids.clear()
        self._unanswered.append(draft.unanswered_step(self._step_id, rows))
        self._counters.step_count += 1
        row_count = len(rows) - draft.held_count
        token_count = self._limits.step_token_limit - draft.token_budget
        self._counters.row_count += row_count
        self._counters.computed_token_count += token_count
        joined = (row.sequence for row in draft.admitted_rows)
        started = tuple(sequence for sequence in joined if sequence.admission_count == 1)
        return PlannedStep(plan=plan, started=started, row_count=row_count, token_count=token_count)

    def _leave(self, row: Row) -> None:
        """Takes a row out of the batch, its blocks free at once; the next plan tells the shard."""
        self._shares.count_tokens(row)
        del self._rows[row.sequence.sequence_id]
        row.table.release()
        self._released_ids.append(row.sequence.sequence_id)
        self._probation.end(row.sequence, self._step_id)

    def _wait(self, sequence: Sequence) -> None:
        """Puts a sequence that left the batch back to its place in the queue.

        The tokens of steps that are unanswered now are still its own, so it is
        not admitted again before they are here.
        """
        sequence.become(SequenceState.WAITING)
        sequence.unsettled_step_id = self._step_id
        self._waiting.push(sequence)

    def _retreat(self) -> None:
        """Moves every row back to the queue."""
        for row in list(self._rows.values()):
            self._leave(row)
            self._wait(row.sequence)

    def _end(self, sequence: Sequence) -> None:
        """Removes every trace of a sequence but the release of its row."""
        row = self._rows.get(sequence.sequence_id)
        if row is None:
            self._waiting.remove(sequence)
        else:
            self._leave(row)
        del self._sequences[sequence.sequence_id]
        del self._chains[sequence.sequence_id]
        if sequence.request.deadline_s is not None:
            self._deadlines.remove(sequence)
        sequence.become(SequenceState.ENDED)


def _deadline_s(sequence: Sequence) -> float:
    assert sequence.request.deadline_s is not None, sequence
    return sequence.request.deadline_s

"""A shard for tests: runs plans to the letter of the step contract, and fails at once where a plan breaks it.

The KV of a token is a digest of the token, of its adapter and of the KV before it, *read through the block
table*. The next token is a digest of all KV read that way. So a block that was freed too early, never computed, or
taken from another text changes every token that follows.
"""

from dataclasses import dataclass, field

from headrace.contract.pooling import Pooling
from headrace.contract.sampling import RowStopRules
from headrace.contract.step import AdmittedSequence, RowEnd, RowError, RowVector, StepPlan, StepResult

VOCABULARY_SIZE = 50


def kv_of(adapter: str, past: tuple[int, ...], token_id: int) -> int:
    """Stands in for attention; `hash` of numbers is the same in every process."""
    return hash((sum(adapter.encode()), past[-1] if past else 0, len(past), token_id))


def next_token(kv: tuple[int, ...]) -> int:
    return hash(kv) % VOCABULARY_SIZE


def end_of(token_id: int, token_count: int, prompt_token_count: int, rules: RowStopRules) -> RowEnd | None:
    """Why a row ends with this token as its last, if it does."""
    if token_count - prompt_token_count >= rules.min_new_token_count:
        if token_id in rules.end_of_sequence_token_ids:
            return RowEnd.END_OF_SEQUENCE
        if token_id in rules.stop_token_ids:
            return RowEnd.STOP_TOKEN
    return RowEnd.TOKEN_LIMIT if token_count == rules.token_limit else None


def vector_of(prompt: tuple[int, ...], adapter: str, pooling: Pooling) -> bytes:
    """The vector of a prompt that nothing ever happens to."""
    kv: tuple[int, ...] = ()
    for token_id in prompt:
        kv = (*kv, kv_of(adapter, kv, token_id))
    return pooled_vector(kv, pooling)


def pooled_vector(kv: tuple[int, ...], pooling: Pooling) -> bytes:
    return str(sum(kv) if pooling is Pooling.MEAN else kv[-1]).encode()


def oracle(prompt: tuple[int, ...], adapter: str, rules: RowStopRules) -> list[int]:
    """All tokens of a sequence that nothing ever happens to, prompt included."""
    tokens: list[int] = []
    kv: tuple[int, ...] = ()
    queue = list(prompt)
    while True:
        for token_id in queue:
            kv = (*kv, kv_of(adapter, kv, token_id))
            tokens.append(token_id)
        token_id = next_token(kv)
        if end_of(token_id, len(tokens) + 1, len(prompt), rules) is not None:
            return [*tokens, token_id]
        queue = [token_id]


class ContractBroken(Exception):
    """A plan that no shard has to accept."""


class ShardDied(Exception):
    """The process is gone, and all answers with it."""


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise ContractBroken(problem)


def require_ascending(numbers: tuple[int, ...], row_count: int, column: str) -> None:
    require(list(numbers) == sorted(set(numbers)), f"{column} is not ascending: {numbers}")
    require(not numbers or (numbers[0] >= 0 and numbers[-1] < row_count), f"{column} is out of range: {numbers}")


@dataclass(eq=False)
class ModelRow:
    admitted: AdmittedSequence
    token_ids: list[int]
    computed_count: int
    block_ids: list[int]
    is_over: bool = False
    computed_kv: tuple[int, ...] = ()
    """Of the tokens that were computed since the admission."""


@dataclass
class ModelShard:
    block_size: int
    block_count: int
    row_limit: int
    token_limit: int
    draft_token_limit: int = 0
    """Most tokens that a row guesses ahead in a step."""
    steps_in_flight: int = 1
    failing_ids: set[int] = field(default_factory=set)
    """Sequences that fail with a row error the next time they compute."""
    deadly_positions: dict[int, int] = field(default_factory=dict)
    """Sequences that kill the shard when they compute their token at this position or a later one."""
    rows: list[ModelRow] = field(default_factory=list)
    last_step_id: int = 0
    computed_count: int = 0

    def __post_init__(self) -> None:
        self.kv: list[list[int | None]] = [[None] * self.block_size for _ in range(self.block_count)]

    def step(self, plan: StepPlan) -> StepResult:
        require(plan.step_id > self.last_step_id, f"step {plan.step_id} follows {self.last_step_id}")
        self.last_step_id = plan.step_id
        self._release(plan)
        for admitted in plan.admitted:
            self._admit(admitted)
        require(len(self.rows) <= self.row_limit, f"{len(self.rows)} rows")
        self._append_blocks(plan)
        chunks = self._chunks(plan)
        require(sum(chunks) <= self.token_limit, f"{sum(chunks)} tokens")
        return self._compute(plan.step_id, chunks)

    def _release(self, plan: StepPlan) -> None:
        released = plan.released_sequence_ids
        known = [row.admitted.sequence_id for row in self.rows]
        require(len(set(released)) == len(released), f"released twice: {released}")
        require(set(released) <= set(known), f"released {released} of {known}")
        self.rows = [row for row in self.rows if row.admitted.sequence_id not in released]

    def _admit(self, admitted: AdmittedSequence) -> None:
        known = [row.admitted.sequence_id for row in self.rows]
        require(admitted.sequence_id not in known, f"{admitted.sequence_id} is admitted twice")
        require(0 <= admitted.computed_token_count < len(admitted.token_ids), "nothing to compute")
        require(0 < admitted.prompt_token_count <= len(admitted.token_ids), "a prompt that is longer than the tokens")
        require(len(admitted.token_ids) < admitted.stopping.token_limit, "nothing to generate")
        if admitted.pooling is not None and admitted.pooling.pooling is Pooling.MEAN:
            require(admitted.computed_token_count == 0, "a mean without all hidden states")
        self.rows.append(
            ModelRow(admitted, list(admitted.token_ids), admitted.computed_token_count, list(admitted.block_ids))
        )

    def _append_blocks(self, plan: StepPlan) -> None:
        require_ascending(plan.block_rows, len(self.rows), "block_rows")
        require(len(plan.block_rows) == len(plan.block_counts), "block columns differ in length")
        require(all(count > 0 for count in plan.block_counts), f"block_counts: {plan.block_counts}")
        require(sum(plan.block_counts) == len(plan.block_ids), "block_counts and block_ids differ")
        block_ids = iter(plan.block_ids)
        for number, count in zip(plan.block_rows, plan.block_counts, strict=True):
            self.rows[number].block_ids.extend(next(block_ids) for _ in range(count))
        for row in self.rows:
            require(len(set(row.block_ids)) == len(row.block_ids), f"a block twice in {row.block_ids}")
            require(all(0 <= block_id < self.block_count for block_id in row.block_ids), f"{row.block_ids}")

    def _chunks(self, plan: StepPlan) -> list[int]:
        require_ascending(plan.chunk_rows, len(self.rows), "chunk_rows")
        require_ascending(plan.held_rows, len(self.rows), "held_rows")
        require(len(plan.chunk_rows) == len(plan.chunk_token_counts), "chunk columns differ in length")
        require(not set(plan.chunk_rows) & set(plan.held_rows), "a row has a chunk and is held")
        require(all(count > 1 for count in plan.chunk_token_counts), f"chunk_token_counts: {plan.chunk_token_counts}")
        chunks = [1] * len(self.rows)
        for number, count in zip(plan.chunk_rows, plan.chunk_token_counts, strict=True):
            chunks[number] = count
        for number in plan.held_rows:
            chunks[number] = 0
        return [0 if row.is_over else chunk for row, chunk in zip(self.rows, chunks, strict=True)]

    def _compute(self, step_id: int, chunks: list[int]) -> StepResult:
        sampled: list[int] = []
        counts: list[int] = []
        ends: dict[int, RowEnd] = {}
        errors: list[RowError] = []
        vectors: list[RowVector] = []
        drafts: dict[int, int] = {}
        for number, (row, chunk) in enumerate(zip(self.rows, chunks, strict=True)):
            counts.append(0)
            if chunk == 0:
                continue
            if row.admitted.sequence_id in self.failing_ids:
                self.failing_ids.remove(row.admitted.sequence_id)
                row.is_over = True
                errors.append(RowError(number, "OUT_OF_LUCK", "as the test asked"))
                continue
            drafted = self._draft(row, chunk)
            token_id = self._advance(row, chunk)
            if row.is_over and row.admitted.pooling is not None:
                ends[number] = RowEnd.POOLED
                vectors.append(RowVector(number, pooled_vector(row.computed_kv, row.admitted.pooling.pooling)))
            if token_id is None:
                continue
            if drafted:
                drafts[number] = len(drafted)
                self._write_ahead(row, drafted)
            counts[-1] = 1
            sampled.append(token_id)
            while (end := self._end(row)) is None and drafted[:1] == [row.token_ids[-1]]:
                del drafted[0]
                token_id = self._advance(row, 1)
                assert token_id is not None
                counts[-1] += 1
                sampled.append(token_id)
            if end is not None:
                row.is_over = True
                ends[number] = end
        return StepResult(
            step_id=step_id,
            token_counts=tuple(counts),
            token_ids=tuple(sampled),
            ended_rows=tuple(ends),
            row_ends=tuple(ends.values()),
            errors=tuple(errors),
            vectors=tuple(vectors),
            draft_rows=tuple(drafts),
            draft_token_counts=tuple(drafts.values()),
        )

    def _end(self, row: ModelRow) -> RowEnd | None:
        return end_of(row.token_ids[-1], len(row.token_ids), row.admitted.prompt_token_count, row.admitted.stopping)

    def _draft(self, row: ModelRow, chunk: int) -> list[int]:
        """Guesses ahead, right and wrong, as far as the contract leaves room."""
        admitted, count = row.admitted, len(row.token_ids)
        if not admitted.may_draft or chunk != 1 or row.computed_count + 1 != count:
            return []
        room = len(row.block_ids) * self.block_size - count - (self.steps_in_flight - 1)
        limit = min(self.draft_token_limit, room, admitted.stopping.token_limit - 1 - count)
        if limit < 1:
            return []
        truth = oracle(tuple(row.token_ids), admitted.adapter, RowStopRules(token_limit=count + 1 + limit))[count:]
        wrong_at = hash((count, admitted.sequence_id)) % (limit + 1)
        return [(token_id + (place == wrong_at)) % VOCABULARY_SIZE for place, token_id in enumerate(truth[:limit])]

    def _write_ahead(self, row: ModelRow, drafted: list[int]) -> None:
        """Writes the KV of guesses, which nobody may read before it is written again."""
        for position in range(row.computed_count, row.computed_count + len(drafted)):
            block_id = row.block_ids[position // self.block_size]
            for other in self.rows:
                require(other is row or block_id not in other.block_ids, f"block {block_id} is shared and gets a guess")
            self.kv[block_id][position % self.block_size] = -1

    def _advance(self, row: ModelRow, chunk: int) -> int | None:
        """Computes a chunk; returns the sampled token if the chunk reached the last known one and is not pooled."""
        start, end = row.computed_count, row.computed_count + chunk
        require(end <= len(row.token_ids), f"a chunk up to {end} of {len(row.token_ids)} tokens")
        require(end <= len(row.block_ids) * self.block_size, f"{end} tokens in {row.block_ids}")
        written = {row.block_ids[position // self.block_size] for position in range(start, end)}
        for other in self.rows:
            require(other is row or not written & set(other.block_ids), f"blocks {written} are written and shared")
        if end > self.deadly_positions.get(row.admitted.sequence_id, end):
            raise ShardDied
        past = tuple(self._read(row, position) for position in range(start))
        for position in range(start, end):
            value = kv_of(row.admitted.adapter, past, row.token_ids[position])
            self.kv[row.block_ids[position // self.block_size]][position % self.block_size] = value
            past = (*past, value)
        row.computed_kv += past[start:]
        row.computed_count = end
        self.computed_count += chunk
        if end < len(row.token_ids):
            return None
        if row.admitted.pooling is not None:
            row.is_over = True
            return None
        row.token_ids.append(next_token(past))
        return row.token_ids[-1]

    def _read(self, row: ModelRow, position: int) -> int:
        value = self.kv[row.block_ids[position // self.block_size]][position % self.block_size]
        if value is None:
            raise ContractBroken(f"position {position} of sequence {row.admitted.sequence_id} was never computed")
        return value

"""One step of a batch: what the router sends to a shard, and what comes back.

The batch lives on the shard; a plan is a delta to it. Both sides keep the same
rows in the same order by one rule: released rows leave, the others keep their
order, admitted rows append. Row numbers in a plan and in its result are
positions after the release and the admission.

A row knows its tokens and how many of them are computed. In each step a row
computes one token unless the plan lists another chunk for it or holds it. When
the chunk reaches the last token that the shard knows, the row samples, and the
sampled token is known to the shard at once: so the router may send the next
plan before it has seen that token. A row that ended by itself computes nothing
until it is released.

A row that may draft can draw several tokens in a step: the engine guesses what
comes, computes its guesses along with the last known token, and keeps those that
it draws anyway. It takes as many as the row's blocks have room for, and leaves
as much room as the plans need that were made before its answer was known: one
token for each further step in flight.

A row with pooling never samples. It ends when its chunk reaches the last token,
with a vector made of its hidden states.

Everything that grows with the batch is a column of integers, not an object per row.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from headrace.contract.pooling import PoolingOptions
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedSequence:
    """A sequence that joins the batch."""

    sequence_id: int
    token_ids: tuple[int, ...]
    """All tokens so far: the prompt and, after a preemption or a replay, what was generated."""
    prompt_token_count: int
    computed_token_count: int
    """How many are computed already, in the first blocks; < len(token_ids)."""
    block_ids: tuple[int, ...]
    """The block table: enough for the computed tokens and the first chunk."""
    sampling: SamplingParams
    stopping: RowStopRules
    logprobs: LogprobOptions = field(default_factory=LogprobOptions)
    grammar: str = ""
    """What the completion has to belong to, in llguidance's notation; empty for none."""
    adapter: str = ""
    """Digest of an adapter that is loaded; empty for the base model."""
    pooling: PoolingOptions | None = None
    """Pools the hidden states of the prompt in place of drawing tokens."""
    may_draft: bool = False
    """Whether it may draw several tokens in a step."""
    trace_parent: str = ""
    """W3C's name of the span that this belongs to; empty where nobody traces it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A change to the batch, then a forward pass."""

    step_id: int
    """Strictly increasing, from 1."""
    released_sequence_ids: tuple[int, ...] = ()
    admitted: tuple[AdmittedSequence, ...] = ()
    block_rows: tuple[int, ...] = ()
    """Rows whose block table grows, ascending."""
    block_counts: tuple[int, ...] = ()
    """How many blocks each of them gets; as long as `block_rows`."""
    block_ids: tuple[int, ...] = ()
    """The blocks, one row's after another's."""
    chunk_rows: tuple[int, ...] = ()
    """Rows that compute another number of tokens than one, ascending."""
    chunk_token_counts: tuple[int, ...] = ()
    """How many each of them computes; as long as `chunk_rows`."""
    held_rows: tuple[int, ...] = ()
    """Rows that compute nothing, ascending."""


NO_TOKEN_LEFT = "NO_TOKEN_LEFT"
"""Reason of a row whose request bars every token that could come next."""
CONSTRAINT_TOO_COMPLEX = "CONSTRAINT_TOO_COMPLEX"
"""Reason of a RowError: what the row is held to takes more work for a token than is allowed."""


class RowEnd(IntEnum):
    """Why a row ended by itself."""

    END_OF_SEQUENCE = 1
    STOP_TOKEN = 2
    TOKEN_LIMIT = 3
    POOLED = 4
    """Every token of its prompt is computed, and its vector is in the result."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row failed. The row is over; the others are not affected."""

    row: int
    reason: str
    """Constant, UPPER_SNAKE_CASE."""
    detail: str
    """For the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLogprobs:
    """Log-probabilities of one row's tokens in one step."""

    row: int
    is_prompt: bool
    logprobs: tuple[float, ...]
    """Of each token, in order; natural logarithm."""
    ranks: tuple[int, ...]
    top_token_ids: tuple[int, ...] = ()
    """`top_count` for each token, likeliest first."""
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class RowVector:
    """The pooled hidden states of one row."""

    row: int
    values: bytes
    """float32, little-endian."""


@dataclass(slots=True, kw_only=True)
class StepTimings:
    """Where a step's time went, in seconds. Not frozen: each of those that a result passes adds what it alone knows."""

    queued_s: float = 0.0
    prepare_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The outcome of one step."""

    step_id: int
    token_counts: tuple[int, ...]
    """Tokens produced by each row, in row order; 0 for a row that is held, ended or mid-prompt."""
    token_ids: tuple[int, ...]
    """The tokens, one row's after another's. An ending token is among them."""
    ended_rows: tuple[int, ...] = ()
    """Rows that ended in this step, ascending."""
    row_ends: tuple[RowEnd, ...] = ()
    """Why; as long as `ended_rows`."""
    errors: tuple[RowError, ...] = ()
    logprobs: tuple[RowLogprobs, ...] = ()
    vectors: tuple[RowVector, ...] = ()
    """Of the rows that ended with POOLED, ascending."""
    draft_rows: tuple[int, ...] = ()
    """Rows that computed drafted tokens, ascending."""
    draft_token_counts: tuple[int, ...] = ()
    """How many each of them computed; as long as `draft_rows`. Those it drew are its tokens beyond the first."""
    timings: StepTimings = field(default_factory=StepTimings)

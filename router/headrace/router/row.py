"""A running sequence's place in the batch."""

from typing import Final

from headrace.router.block_table import BlockTable
from headrace.router.sequence import Sequence, SequenceState


class Row:
    """What the scheduler knows of a sequence from its admission until it leaves the batch.

    There is no phase of prefill or of decoding: a row has a number of tokens to
    compute, and every step brings it closer to that.

        computed  ≤  scheduled_count  ≤  target_count  ≤  token limit - 1

    Steps that are unanswered lie between computed and scheduled. When a step
    reaches the target it samples, and the target moves on by the token to come,
    before anyone has seen it. The last token that the limit allows is never a
    target: nothing is sampled after it.

    A step that reaches the target is taken to sample one token. One with drafts
    may bring more: until its answer is here, both counts are the least that can
    be, and `receive` moves them on. The engine takes drafts only as far as the
    table has room for them and for the steps that were planned without knowing.
    """

    __slots__ = (
        "_counted_count",
        "_target_limit",
        "number",
        "scheduled_count",
        "sequence",
        "spare_count",
        "table",
        "target_count",
    )

    def __init__(self, *, sequence: Sequence, table: BlockTable, spare_count: int = 0) -> None:
        self.sequence: Final = sequence
        self.table: Final = table
        self.spare_count: Final = spare_count
        """Slots that it would like to have beyond its next token's, for drafts."""
        self.scheduled_count = table.hit_token_count
        """Tokens computed once all unanswered steps are answered."""
        self.target_count = len(sequence.token_ids)
        """Tokens to compute, those included that are sampled but not back."""
        self._target_limit: Final = sequence.token_limit - 1
        self._counted_count = len(sequence.token_ids)
        """Of its sequence's tokens, those that were counted for its tenant."""
        self.number = 0
        """Position in the batch, as of the last plan."""

    @property
    def remaining_count(self) -> int:
        """Tokens that can be scheduled: 1 while it decodes, 0 when its last token is on its way."""
        return self.target_count - self.scheduled_count

    @property
    def may_grow(self) -> bool:
        """Whether it needs more blocks if it runs to its limit."""
        return self.table.slot_count < self._target_limit

    @property
    def wanted_slot_count(self) -> int:
        """Slots with which its next token can be computed, and as many drafts as it may take."""
        return min(self.scheduled_count + 1 + self.spare_count, self._target_limit)

    def take_uncounted(self) -> int:
        """Returns how many tokens came since the last time."""
        count = len(self.sequence.token_ids)
        uncounted_count, self._counted_count = count - self._counted_count, count
        return uncounted_count

    def schedule(self, token_count: int) -> None:
        """Plans to compute more tokens; at most `remaining_count`."""
        self.scheduled_count += token_count
        if self.scheduled_count == self.target_count < self._target_limit:
            self.target_count += 1

    def receive(self, token_ids: tuple[int, ...]) -> None:
        """Takes the tokens of an answered step that reached the target.

        All tokens but the last are computed then. Valid after the row left the
        batch too, as long as the sequence lives on.
        """
        tokens = self.sequence.token_ids
        tokens.extend(token_ids)
        computed_count = len(tokens) - 1
        if computed_count >= self.table.next_full_count:
            self.table.commit(tokens, computed_count)
        if len(token_ids) > 1:
            extra_count = len(token_ids) - 1
            self.scheduled_count = min(self.scheduled_count + extra_count, self._target_limit)
            self.target_count = min(self.target_count + extra_count, self._target_limit)

    def note_computed(self, computed_count: int) -> None:
        """Takes the answer of a step that ended short of the target."""
        self.table.commit(self.sequence.token_ids, computed_count)

    def violations(self) -> list[str]:
        """Returns what is inconsistent, in words; nothing if all is well."""
        found: list[str] = []
        if self.sequence.state is not SequenceState.RUNNING:
            found.append(f"{self.sequence} has a row")
        if not self.table.hit_token_count <= self.scheduled_count <= self.target_count <= self._target_limit:
            found.append(f"{self.sequence}: scheduled {self.scheduled_count}, target {self.target_count}")
        if self.scheduled_count > self.table.slot_count:
            found.append(f"{self.sequence}: scheduled {self.scheduled_count} in {self.table.slot_count} slots")
        if self.remaining_count > 1 and self.target_count > self.table.slot_count:
            found.append(f"{self.sequence}: a chunk would have to wait for blocks")
        return found

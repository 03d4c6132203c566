"""Gives log-probabilities their texts and their places in the completion, or in the prompt."""

import math
from collections.abc import Sequence

from headrace.contract.generation import TokenLogprob
from headrace.contract.step import RowLogprobs
from headrace.router.tokenizer import Tokenizer


class LogprobWriter:
    """Follows one text, token by token."""

    __slots__ = ("_byte_count", "_table", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, include_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.token_bytes(include_special_tokens=include_special_tokens)
        self._byte_count = 0

    def write_first(self, token_id: int) -> TokenLogprob:
        """Returns the entry of a prompt's first token, which nothing comes before that could tell its probability."""
        return self._entry(token_id, None, 0, ())

    def write(self, token_ids: Sequence[int], reports: Sequence[RowLogprobs]) -> tuple[TokenLogprob, ...]:
        """Returns one entry for each token, in order.

        Args:
            token_ids: The tokens that come next.
            reports: What the engine says of them, in as many pieces as it likes.
        """
        written: list[TokenLogprob] = []
        position = 0
        for report in reports:
            top_count = len(report.top_token_ids) // len(report.logprobs)
            for index, (logprob, rank) in enumerate(zip(report.logprobs, report.ranks, strict=True)):
                if position == len(token_ids):  # the rest comes after a stop sequence
                    break
                rivals = slice(index * top_count, (index + 1) * top_count)
                top = zip(report.top_token_ids[rivals], report.top_logprobs[rivals], strict=True)
                written.append(self._entry(token_ids[position], logprob, rank, tuple(top)))
                position += 1
        return tuple(written)

    def _entry(
        self, token_id: int, logprob: float | None, rank: int, top: tuple[tuple[int, float], ...]
    ) -> TokenLogprob:
        offset = self._byte_count
        self._byte_count += len(self._table[token_id]) if token_id < len(self._table) else 0
        text_of = self._tokenizer.token_text
        return TokenLogprob(
            token_id=token_id,
            text=text_of(token_id),
            logprob=logprob,
            rank=rank,
            byte_offset=offset,
            top=tuple(
                TokenLogprob(token_id=rival, text=text_of(rival), logprob=value, rank=place, byte_offset=offset)
                for place, (rival, value) in enumerate(top, start=1)
                # What the filters dropped is no rival: it could not have been drawn.
                if value > -math.inf
            ),
        )

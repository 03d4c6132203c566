"""The columns of the resident batch: arrays with one place per row, grown as needed."""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.contract.pooling import PoolingOptions
from headrace.contract.step import AdmittedSequence, RowEnd
from headrace.shard.growing_columns import GrowingColumns, fill_cells
from headrace.shard.processor_columns import ProcessorColumns
from headrace.shard.speculation.draft_columns import DraftColumns

_FIRST_PLACE_COUNT = 8
_WIDTHS = {"token_ids": 256, "block_tables": 16, "ending_token_ids": 4, "ending_kinds": 4}
"""First widths of the columns that have one."""

DRAWS: Final = 1
"""Of a row's needs: a random number, since it does not decode greedily."""
CHANGES: Final = 2
"""Of a row's needs: a look at what a token is drawn from, or at the token, since more may apply than temperature, top-k
and top-p: see LogitsProcessor."""
REPORTS: Final = 4
"""Of a row's needs: the log-probabilities of what it draws."""
REPORTS_PROMPT: Final = 8
"""Of a row's needs: the log-probabilities of its prompt."""
POOLS: Final = 16
"""Of a row's needs: its hidden states, in place of a draw."""


class BatchColumns(GrowingColumns):
    """Arrays indexed by place. A place is taken when its row is admitted and freed when it is released."""

    def __init__(self) -> None:
        count = _FIRST_PLACE_COUNT
        self.token_ids = np.zeros((count, _WIDTHS["token_ids"]), dtype=np.int64)
        """[place, position] the known tokens."""
        self.token_counts = np.zeros(count, dtype=np.int64)
        """[place] known tokens."""
        self.prompt_counts = np.zeros(count, dtype=np.int64)
        """[place] tokens of the prompt; what follows was generated."""
        self.computed_counts = np.zeros(count, dtype=np.int64)
        """[place] tokens whose KV is in the blocks."""
        self.block_tables = np.zeros((count, _WIDTHS["block_tables"]), dtype=np.int64)
        """[place, block] block ids."""
        self.block_counts = np.zeros(count, dtype=np.int64)
        """[place] entries of the block table."""
        self.is_over = np.zeros(count, dtype=np.bool_)
        """[place] whether the row ended or failed, and only waits for its release."""
        self.needs = np.zeros(count, dtype=np.uint8)
        """[place] bits for what a row may need, above: what no row of a step needs is not looked for in the columns."""
        self.temperatures = np.zeros(count, dtype=np.float32)
        """[place]"""
        self.top_ks = np.zeros(count, dtype=np.int64)
        """[place]"""
        self.top_ps = np.ones(count, dtype=np.float32)
        """[place]"""
        self.seeds = np.zeros(count, dtype=np.int64)
        """[place] the bits of the unsigned seed."""
        self.token_limits = np.zeros(count, dtype=np.int64)
        """[place] tokens at which the row ends."""
        self.min_new_counts = np.zeros(count, dtype=np.int64)
        """[place] generated tokens before which no ending token is drawn."""
        self.ending_token_ids = np.full((count, _WIDTHS["ending_token_ids"]), -1, dtype=np.int32)
        """[place, ending] end-of-sequence ids, then stop ids, then -1."""
        self.ending_kinds = np.zeros((count, _WIDTHS["ending_kinds"]), dtype=np.int64)
        """[place, ending] the RowEnd of each."""
        self.reports_logprobs = np.zeros(count, dtype=np.bool_)
        """[place]"""
        self.reports_prompt = np.zeros(count, dtype=np.bool_)
        """[place] whether the log-probabilities of the prompt are wanted."""
        self.reports_processed = np.zeros(count, dtype=np.bool_)
        """[place] whether its log-probabilities are those of the distribution that it was drawn from."""
        self.top_logprob_counts = np.zeros(count, dtype=np.int64)
        """[place]"""
        self.processors = ProcessorColumns(count)
        """What the logits processors need."""
        self.drafts = DraftColumns(count)
        """What became of guesses."""
        self.is_pooled = np.zeros(count, dtype=np.bool_)
        """[place] whether hidden states are pooled, and nothing is drawn."""
        self.poolings: dict[int, PoolingOptions] = {}
        """By the places where `is_pooled`; what it says of others is of no meaning."""
        self._free_places = list(range(count - 1, -1, -1))

    def clear(self) -> None:
        """Frees every place."""
        self._free_places = list(range(len(self.token_counts) - 1, -1, -1))

    def free(self, places: Iterable[int]) -> None:
        """Frees places."""
        self._free_places.extend(places)

    def take(self, sequence: AdmittedSequence) -> int:
        """Fills a free place with a sequence and returns it."""
        if not self._free_places:
            self._grow_places()
        place = self._free_places.pop()
        token_count, block_count = len(sequence.token_ids), len(sequence.block_ids)
        self.widen("token_ids", token_count)
        self.widen("block_tables", block_count)
        self.token_ids[place, :token_count] = sequence.token_ids
        self.token_counts[place] = token_count
        self.prompt_counts[place] = sequence.prompt_token_count
        self.computed_counts[place] = sequence.computed_token_count
        self.block_tables[place, :block_count] = sequence.block_ids
        self.block_counts[place] = block_count
        self.is_over[place] = False
        self.needs[place] = _needs(sequence)
        self.processors.fill(place, sequence)
        self.drafts.fill(place, may_draft=sequence.may_draft)
        self.is_pooled[place] = sequence.pooling is not None
        if sequence.pooling is not None:
            self.poolings[place] = sequence.pooling
        self._set_sampling(place, sequence)
        self._set_stopping(place, sequence)
        return place

    def needs_of(self, places: NDArray[np.int64]) -> int:
        """Returns what any of some rows may need, as bits."""
        return int(np.bitwise_or.reduce(self.needs[places]))

    def append_tokens(self, places: NDArray[np.int64], known: NDArray[np.int64], token_ids: NDArray[np.int64]) -> None:
        """Makes one more token known at each place, after those that are. Processors learn of it apart."""
        self.widen("token_ids", max(known.tolist(), default=0) + 1)
        fill_cells(self.token_ids, places, known, token_ids)
        self.token_counts[places] = known + 1

    def append_blocks(self, places: NDArray[np.int64], counts: NDArray[np.int64], block_ids: NDArray[np.int64]) -> None:
        """Appends to block tables: `counts[i]` of the ids, in order, to the one at `places[i]`."""
        held = self.block_counts[places]
        self.widen("block_tables", int((held + counts).max()))
        firsts = np.cumsum(counts) - counts
        entries = np.arange(len(block_ids)) + np.repeat(held - firsts, counts)
        self.block_tables[np.repeat(places, counts), entries] = block_ids
        self.block_counts[places] = held + counts

    def _set_sampling(self, place: int, sequence: AdmittedSequence) -> None:
        sampling = sequence.sampling
        self.temperatures[place] = sampling.temperature
        self.top_ks[place] = sampling.top_k
        self.top_ps[place] = sampling.top_p
        self.seeds[place] = np.uint64(sampling.seed).astype(np.int64)
        self.reports_logprobs[place] = sequence.logprobs.sampled or sequence.logprobs.top_count > 0
        self.reports_prompt[place] = sequence.logprobs.prompt
        self.reports_processed[place] = sequence.logprobs.processed
        self.top_logprob_counts[place] = sequence.logprobs.top_count

    def _set_stopping(self, place: int, sequence: AdmittedSequence) -> None:
        stopping = sequence.stopping
        self.token_limits[place] = stopping.token_limit
        self.min_new_counts[place] = stopping.min_new_token_count
        end_ids, stop_ids = stopping.end_of_sequence_token_ids, stopping.stop_token_ids
        count = len(end_ids) + len(stop_ids)
        self.widen("ending_token_ids", count)
        self.widen("ending_kinds", count)
        self.ending_token_ids[place] = -1
        self.ending_token_ids[place, :count] = end_ids + stop_ids
        self.ending_kinds[place, : len(end_ids)] = RowEnd.END_OF_SEQUENCE
        self.ending_kinds[place, len(end_ids) : count] = RowEnd.STOP_TOKEN

    def _grow_places(self) -> None:
        count = len(self.token_counts)
        self.grow_places(2 * count)
        self.processors.grow_places(2 * count)
        self.drafts.grow_places(2 * count)
        self._free_places.extend(range(2 * count - 1, count - 1, -1))


def _needs(sequence: AdmittedSequence) -> int:
    sampling, logprobs = sequence.sampling, sequence.logprobs
    changes = sampling.needs_processing or sequence.grammar or sequence.stopping.min_new_token_count > 0
    return (
        (0 if sampling.is_greedy else DRAWS)
        | (CHANGES if changes else 0)
        | (REPORTS if logprobs.sampled or logprobs.top_count > 0 else 0)
        | (REPORTS_PROMPT if logprobs.prompt else 0)
        | (POOLS if sequence.pooling is not None else 0)
    )

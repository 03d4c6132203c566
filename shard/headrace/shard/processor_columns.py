"""The columns of the resident batch that only the logits processors read."""

import numpy as np
from numpy.typing import NDArray

from headrace.contract.sampling import SamplingParams
from headrace.contract.step import AdmittedSequence
from headrace.contract.watermark import threshold_of
from headrace.shard.banned_text import BannedTextTracker
from headrace.shard.growing_columns import GrowingColumns
from headrace.shard.token_tally import TokenTally

Ints = NDArray[np.int64]

_FIRST_WIDTH = 8
_NEVER = np.iinfo(np.int64).max


class ProcessorColumns(GrowingColumns):
    """Options that change the logits of a row, by place. A batch in which nobody uses any pays a look at `is_used`."""

    def __init__(self, place_count: int) -> None:
        self.is_used = np.zeros(place_count, dtype=np.bool_)
        """[place] whether anything but temperature, top-k and top-p applies."""
        self.is_penalized = np.zeros(place_count, dtype=np.bool_)
        """[place] whether its tokens are counted."""
        self.repetition_penalties = np.ones(place_count, dtype=np.float32)
        """[place]"""
        self.frequency_penalties = np.zeros(place_count, dtype=np.float32)
        """[place]"""
        self.presence_penalties = np.zeros(place_count, dtype=np.float32)
        """[place]"""
        self.bias_token_ids = np.full((place_count, _FIRST_WIDTH), -1, dtype=np.int32)
        """[place, entry] ids, then -1."""
        self.biases = np.zeros((place_count, _FIRST_WIDTH), dtype=np.float32)
        """[place, entry]"""
        self.length_starts = np.full(place_count, _NEVER, dtype=np.int64)
        """[place] generated tokens before the length penalty starts."""
        self.length_decays = np.ones(place_count, dtype=np.float64)
        """[place]"""
        self.watermark_keys = np.zeros(place_count, dtype=np.int64)
        """[place] the bits of the unsigned key."""
        self.green_thresholds = np.zeros(place_count, dtype=np.int64)
        """[place] values of a lane that are green; 0 without a watermark."""
        self.watermark_deltas = np.zeros(place_count, dtype=np.float32)
        """[place]"""
        self.min_ps = np.zeros(place_count, dtype=np.float32)
        """[place]"""
        self.typical_ps = np.ones(place_count, dtype=np.float32)
        """[place]"""
        self.tally = TokenTally(place_count)
        """The tokens of the places that are penalized."""
        self._banned: dict[int, BannedTextTracker] = {}

    def grow_places(self, count: int) -> None:
        """Makes every column at least `count` places long."""
        super().grow_places(count)
        self.tally.grow_places(count)

    def fill(self, place: int, sequence: AdmittedSequence) -> None:
        """Fills a place with a sequence; what it held is gone."""
        sampling = sequence.sampling
        penalty = sampling.length_penalty
        self.repetition_penalties[place] = sampling.repetition_penalty
        self.frequency_penalties[place] = sampling.frequency_penalty
        self.presence_penalties[place] = sampling.presence_penalty
        self.length_starts[place] = _NEVER if penalty is None else penalty.start_index
        self.length_decays[place] = 1.0 if penalty is None else penalty.decay_factor
        mark = sampling.watermark
        self.watermark_keys[place] = 0 if mark is None else np.uint64(mark.key).astype(np.int64)
        self.green_thresholds[place] = 0 if mark is None else threshold_of(mark.gamma)
        self.watermark_deltas[place] = 0.0 if mark is None else mark.delta
        self.min_ps[place] = sampling.min_p
        self.typical_ps[place] = sampling.typical_p
        self._fill_biases(place, sampling)
        self._banned.pop(place, None)
        if sampling.banned_text is not None:
            generated = sequence.token_ids[sequence.prompt_token_count :]
            self._banned[place] = BannedTextTracker(sampling.banned_text, generated)
        self.is_penalized[place] = sampling.has_penalties
        if sampling.has_penalties:
            self.tally.fill(place, sequence.token_ids, sequence.prompt_token_count)
        self.is_used[place] = sampling.needs_processing

    def append_tokens(self, places: Ints, token_ids: Ints) -> None:
        """Takes one more generated token at each place."""
        if not self.is_used[places].any():
            return
        penalized = self.is_penalized[places]
        if penalized.any():
            self.tally.append(places[penalized], token_ids[penalized])
        if self._banned:
            for place, token_id in zip(places.tolist(), token_ids.tolist(), strict=True):
                if place in self._banned:
                    self._banned[place].push(token_id)

    def barred_tokens(self, places: Ints) -> tuple[Ints, Ints]:
        """Returns the tokens that would complete a banned text: indices into `places` and, as long, token ids."""
        if not self._banned:
            return places[:0], places[:0]
        found = [
            (index, self._banned[place].barred_token_ids)
            for index, place in enumerate(places.tolist())
            if place in self._banned
        ]
        if not found:
            return places[:0], places[:0]
        token_ids = np.concatenate([barred for _, barred in found])
        return np.repeat([index for index, _ in found], [len(barred) for _, barred in found]), token_ids

    def _fill_biases(self, place: int, sampling: SamplingParams) -> None:
        count = len(sampling.logit_bias)
        self.widen("bias_token_ids", count)
        self.widen("biases", count)
        self.bias_token_ids[place] = -1
        if count:
            token_ids, biases = zip(*sampling.logit_bias, strict=True)
            self.bias_token_ids[place, :count] = token_ids
            self.biases[place, :count] = biases

"""Follows a completion towards texts that it must not contain."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from headrace.contract.sampling import BannedText


class BannedTextTracker:
    """One completion's state in the automaton that the router made of its banned words."""

    __slots__ = ("_active", "_always", "_ends", "_moves", "_neutral", "_start_states", "_start_token_ids")

    def __init__(self, text: BannedText, generated: Iterable[int]) -> None:
        """Starts after the tokens that were generated already."""
        self._always = np.array(text.token_ids, dtype=np.int64)
        self._neutral = frozenset(text.neutral_token_ids)
        self._start_token_ids = np.array(text.start_token_ids, dtype=np.int64)
        self._start_states = text.start_states
        origins = zip(text.move_states, text.move_token_ids, strict=True)
        self._moves: dict[tuple[int, int], list[int]] = {}
        for origin, state in zip(origins, text.move_next_states, strict=True):
            self._moves.setdefault(origin, []).append(state)
        bounds = np.searchsorted(np.array(text.end_states, dtype=np.int64), np.arange(text.state_count + 1)).tolist()
        end_token_ids = np.array(text.end_token_ids, dtype=np.int64)
        self._ends = [end_token_ids[bounds[state] : bounds[state + 1]] for state in range(text.state_count)]
        self._active: tuple[int, ...] = ()
        for token_id in generated:
            self.push(token_id)

    @property
    def barred_token_ids(self) -> NDArray[np.int64]:
        """The tokens that would complete a banned text now; may name one twice."""
        if not self._active:
            return self._always
        return np.concatenate((self._always, *(self._ends[state] for state in self._active)))

    def push(self, token_id: int) -> None:
        """Takes a generated token."""
        if token_id in self._neutral:
            return
        moved = [state for origin in self._active for state in self._moves.get((origin, token_id), ())]
        first, end = np.searchsorted(self._start_token_ids, (token_id, token_id + 1)).tolist()
        self._active = tuple(sorted({*moved, *self._start_states[first:end]}))

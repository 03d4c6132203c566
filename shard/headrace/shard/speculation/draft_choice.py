"""How many tokens to guess for each row of a step, so that most tokens come per second."""

import numpy as np
from numpy.typing import NDArray

from headrace.shard.speculation.step_cost import StepCost

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEAST_GAIN = 1.05
"""Tokens per second with drafts, over those without, below which nothing is guessed: estimates are not exact."""


def choose_counts(
    acceptances: Floats, limits: Ints, *, token_count: int, sampling_count: int, cost: StepCost, depth_s: float
) -> Ints:
    """Returns [row] how many tokens to guess, many of them none.

    A guess at depth d counts if all before it are right as well. Guesses are taken
    in the order of their probability, so those of a row come one after the other,
    as long as the expected tokens per second rise.

    Args:
        acceptances: [row, first or later] probability that a guess is right, below 1.
        limits: [row] most guesses.
        token_count: Tokens of the step without guesses.
        sampling_count: Tokens that it draws without guesses.
        cost: What a step takes.
        depth_s: What guessing one more token for all rows takes.
    """
    counts = np.zeros(len(limits), dtype=np.int64)
    deepest = int(limits.max(initial=0))
    if deepest == 0:
        return counts
    depths = np.arange(deepest)
    chances = acceptances[:, :1] * acceptances[:, 1:] ** depths
    rows, columns = (depths < limits[:, None]).nonzero()
    chances = chances[rows, columns]
    order = np.argsort(-chances, kind="stable")
    extra = np.arange(1, len(order) + 1)
    drafting_s = depth_s * np.maximum.accumulate(columns[order] + 1)
    seconds = cost.seconds(token_count + extra, has_drafts=True) + drafting_s
    rates = (sampling_count + np.cumsum(chances[order])) / seconds
    best = int(np.argmax(rates))
    plain_rate = sampling_count / cost.seconds_of(token_count, has_drafts=False)
    if rates[best] > LEAST_GAIN * plain_rate:
        np.add.at(counts, rows[order[: best + 1]], 1)
    return counts

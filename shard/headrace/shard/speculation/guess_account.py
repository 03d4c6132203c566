"""Bounds what guessing costs where it does not help: a loss is made only of what was saved up, or earned by guesses."""

from typing import Final

LOSS_SHARE: Final = 0.01
"""Share of the time of steps with rows to guess for that may be lost to guesses."""
OPENING_STEP_COUNT: Final = 8
"""Steps of one token that guesses may cost before anything is known of them."""
RESERVE_STEP_COUNT: Final = 64
"""Most that is kept of what was saved up and earned, so that guesses that were good once do not pay for long."""


class GuessAccount:
    """Time that guesses have saved, and time that they took, over all rows of an engine.

    Each step with a row that may be guessed for pays in a small share of its time. Guesses take out what they
    took, and pay in what they saved. With nothing left there are none, until
    enough came in. So over any stretch of time the loss is at most that share,
    what the account held before, and the one trial that overdrew it; and it does
    not matter how many rows, each unknown at first, guesses are tried on.

    What is learned of each row (`DraftColumns`) says where guesses pay. This says
    how much finding out may cost.
    """

    __slots__ = ("_balance_s", "_reserve_s")

    def __init__(self, step_s: float) -> None:
        """Takes what a step of one token takes."""
        self._balance_s = OPENING_STEP_COUNT * step_s
        self._reserve_s = RESERVE_STEP_COUNT * step_s

    @property
    def may_guess(self) -> bool:
        """Whether guesses may take time."""
        return self._balance_s > 0.0

    def settle(self, *, plain_s: float, spent_s: float = 0.0, saved_s: float = 0.0) -> None:
        """Takes in a step.

        Args:
            plain_s: What it would have taken without guesses.
            spent_s: What guessing, and computing the guesses, took beyond that.
            saved_s: What the steps take that the right guesses spare.
        """
        income_s = LOSS_SHARE * plain_s + saved_s - spent_s
        self._balance_s = min(self._balance_s + income_s, self._reserve_s)

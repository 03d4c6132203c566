"""Guesses that never come right cost a bounded share of the time, and good ones are never held back."""

import numpy as np
import torch
from guessing import Prophet, TableEngine, random_logits
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plan_driver import PlanDriver

from headrace.contract.clock import Clock
from headrace.shard.input_batch import InputBatch
from headrace.shard.speculation.guess_account import LOSS_SHARE, OPENING_STEP_COUNT, RESERVE_STEP_COUNT, GuessAccount

SIZE = 24
LOGITS = random_logits(SIZE)
MOST_LOST = 0.03
"""The share of the time that may be lost where guesses do not help."""


@given(steps=st.lists(st.tuples(st.floats(0.5, 30.0), st.floats(0.0, 20.0)), max_size=300))
def test_what_brings_nothing_loses_no_more_than_its_share(steps: list[tuple[float, float]]) -> None:
    """Whatever steps and trials take: steps of prompts are longer, and a trial may have to read a prompt first."""
    account = GuessAccount(1.0)
    total_s = lost_s = largest_s = 0.0
    for plain_s, trial_s in steps:
        spent_s = trial_s if account.may_guess else 0.0
        account.settle(plain_s=plain_s, spent_s=spent_s)
        total_s += plain_s
        lost_s += spent_s
        largest_s = max(largest_s, spent_s)
        assert lost_s <= LOSS_SHARE * total_s + OPENING_STEP_COUNT + largest_s


def test_guesses_that_save_time_are_never_held_back() -> None:
    account = GuessAccount(1.0)
    for number in range(1000):
        assert account.may_guess
        # The text repeats itself for a while, and for a while it does not; in all a little is gained.
        account.settle(plain_s=1.0, spent_s=0.4, saved_s=0.9 if number // 20 % 2 == 0 else 0.0)


def test_what_was_good_once_does_not_pay_for_long() -> None:
    account = GuessAccount(1.0)
    for _ in range(1000):
        account.settle(plain_s=1.0, spent_s=0.1, saved_s=3.0)
    lost_s = 0.0
    while account.may_guess:
        account.settle(plain_s=1.0, spent_s=0.5)
        lost_s += 0.5
    assert lost_s <= RESERVE_STEP_COUNT / (1 - LOSS_SHARE / 0.5) + 1.0


class Watch(Clock):
    """A clock that only guessing moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s


class WrongAndSlow(Prophet):
    """Reads a prompt in the time of three steps, makes a guess in a fifth of one, and is always wrong."""

    prior = 0.7

    def __init__(self, watch: Watch) -> None:
        super().__init__([], wrong_one_in=0, vocabulary_size=SIZE)
        self._watch = watch
        self._read: set[int] = set()

    def depth_s(self, _row_count: int) -> float:
        return 0.2

    def prepare(self, batch: InputBatch, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        new = set(batch.columns.seeds[places].tolist()) - self._read
        self._read |= new
        self._watch.now_s += 3.0 * len(new)
        return super().prepare(batch, places)

    def propose(self, batch: InputBatch, places: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        self._watch.now_s += 0.2 * int(counts.max())
        # Token 0 is never what comes: its logit is the lowest.
        return np.zeros((len(places), int(counts.max())), dtype=np.int64)


def test_a_drafter_that_is_always_wrong_costs_little_however_often_it_meets_new_requests() -> None:
    def logits(tokens: tuple[int, ...]) -> torch.Tensor:
        values = LOGITS(tokens).clone()
        values[0] = -100.0
        return values

    watch = Watch()
    driver = PlanDriver(
        TableEngine(logits, vocabulary_size=SIZE, prophet=WrongAndSlow(watch), clock=watch), may_draft=True
    )
    step_count = 0
    for number in range(60):
        job = driver.submit((3 + number % 20, 6, 7), 64)
        while not job.is_over:
            driver.step()
            step_count += 1
    assert driver.accepted_count == 0
    assert driver.drafted_count > 0
    assert watch.now_s < MOST_LOST * step_count

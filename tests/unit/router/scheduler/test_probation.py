import pytest
from scheduler_rig import make_request

from headrace.router.probation import Probation
from headrace.router.sequence import Sequence


@pytest.fixture
def suspect() -> Sequence:
    sequence = Sequence(sequence_id=1, request=make_request([1, 2, 3]), arrival_s=0.0)
    sequence.suspect(unanswered_token_count=1)
    return sequence


def test_nobody_is_probed_at_first() -> None:
    assert not Probation().is_going_on(answered_step_id=0)


def test_others_need_no_probation() -> None:
    probation = Probation()
    probation.begin(Sequence(sequence_id=1, request=make_request([1, 2, 3]), arrival_s=0.0))
    assert not probation.is_going_on(answered_step_id=0)


def test_lasts_until_the_suspect_is_cleared(suspect: Sequence) -> None:
    probation = Probation()
    probation.begin(suspect)
    assert probation.is_going_on(answered_step_id=5)
    suspect.token_ids.append(9)
    assert not probation.is_going_on(answered_step_id=5)


def test_a_suspect_that_leaves_uncleared_is_dangerous_until_its_last_step_is_answered(suspect: Sequence) -> None:
    probation = Probation()
    probation.begin(suspect)
    probation.end(suspect, last_step_id=7)
    assert probation.is_going_on(answered_step_id=6)
    assert not probation.is_going_on(answered_step_id=7)


def test_a_cleared_one_leaves_no_danger_behind(suspect: Sequence) -> None:
    probation = Probation()
    probation.begin(suspect)
    suspect.token_ids.append(9)
    probation.end(suspect, last_step_id=7)
    assert not probation.is_going_on(answered_step_id=6)


def test_somebody_else_leaving_changes_nothing(suspect: Sequence) -> None:
    probation = Probation()
    probation.begin(suspect)
    probation.end(Sequence(sequence_id=2, request=make_request([1]), arrival_s=0.0), last_step_id=7)
    assert probation.is_going_on(answered_step_id=9)

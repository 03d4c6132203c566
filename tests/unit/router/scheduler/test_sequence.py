import pytest
from scheduler_rig import make_request

from headrace.contract.errors import ServerError
from headrace.router.sequence import TRANSITIONS, Sequence, SequenceState


def make_sequence() -> Sequence:
    return Sequence(sequence_id=7, request=make_request([1, 2, 3], 5), arrival_s=1.5)


def brought_to(state: SequenceState) -> Sequence:
    sequence = make_sequence()
    if state is not SequenceState.WAITING:
        sequence.become(state)
    return sequence


def test_begins_waiting_with_its_prompt() -> None:
    sequence = make_sequence()
    assert sequence.state is SequenceState.WAITING
    assert sequence.token_ids == [1, 2, 3]
    assert sequence.token_limit == 8
    assert (sequence.generated_token_count, sequence.cached_token_count) == (0, 0)
    assert (sequence.admission_count, sequence.preemption_count, sequence.loss_count) == (0, 0, 0)


def test_counts_what_was_generated() -> None:
    sequence = make_sequence()
    sequence.token_ids.extend([9, 9])
    assert sequence.generated_token_count == 2


@pytest.mark.parametrize("state", SequenceState)
@pytest.mark.parametrize("following", SequenceState)
def test_only_the_transitions_of_the_table_exist(state: SequenceState, following: SequenceState) -> None:
    sequence = brought_to(state)
    if following in TRANSITIONS[state]:
        sequence.become(following)
        assert sequence.state is following
    else:
        with pytest.raises(ServerError, match=f"sequence 7 cannot go from {state} to {following}"):
            sequence.become(following)
        assert sequence.state is state


def test_the_table_lists_every_state() -> None:
    assert set(TRANSITIONS) == set(SequenceState)


def test_a_suspect_is_cleared_past_every_step_that_was_unanswered() -> None:
    sequence = make_sequence()
    assert not sequence.is_suspect
    sequence.suspect(unanswered_token_count=2)
    assert sequence.is_suspect
    sequence.token_ids.append(9)
    assert sequence.is_suspect, "the second of the two steps may have been the fatal one"
    sequence.token_ids.append(9)
    assert not sequence.is_suspect


def test_losses_add_up_only_without_clearance_between() -> None:
    sequence = make_sequence()
    sequence.suspect(unanswered_token_count=1)
    sequence.token_ids.append(9)
    sequence.suspect(unanswered_token_count=1)
    assert sequence.loss_count == 1
    sequence.suspect(unanswered_token_count=1)
    assert sequence.loss_count == 2


@pytest.mark.parametrize(
    ("asked", "generated_count", "expected"), [(True, 0, True), (True, 1, False), (False, 0, False)]
)
def test_prompt_logprobs_are_due_until_the_first_token(asked: bool, generated_count: int, expected: bool) -> None:
    sequence = Sequence(sequence_id=1, request=make_request([1, 2], prompt_logprobs=asked), arrival_s=0.0)
    sequence.token_ids.extend([9] * generated_count)
    assert sequence.wants_prompt_logprobs is expected


def test_shows_what_matters() -> None:
    assert repr(make_sequence()) == "Sequence(7, waiting, 3 of 8 tokens)"

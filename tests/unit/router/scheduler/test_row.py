import pytest
from scheduler_rig import make_request

from headrace.router.digest_chain import DigestChain
from headrace.router.kv_memory import KvMemory
from headrace.router.row import Row
from headrace.router.sequence import Sequence, SequenceState


def make_row(prompt_token_count: int, new_token_count: int, kv: KvMemory | None = None) -> Row:
    request = make_request(range(prompt_token_count), new_token_count)
    sequence = Sequence(sequence_id=1, request=request, arrival_s=0.0)
    kv = kv or KvMemory(block_size=4, block_count=10)
    chain = DigestChain.of(request, 4)
    table = kv.lease(chain, sequence.token_ids, may_hit=True, reserved_count=0)
    assert table is not None
    sequence.become(SequenceState.RUNNING)
    return Row(sequence=sequence, table=table)


def test_a_chunk_short_of_the_target_leaves_it_where_it_is() -> None:
    row = make_row(6, 4)
    row.schedule(4)
    assert (row.scheduled_count, row.target_count, row.remaining_count) == (4, 6, 2)


def test_reaching_the_target_moves_it_by_the_token_to_come() -> None:
    row = make_row(6, 4)
    row.schedule(6)
    assert (row.scheduled_count, row.target_count) == (6, 7)
    row.schedule(1)
    assert (row.scheduled_count, row.target_count) == (7, 8)


def test_the_last_token_is_never_a_target() -> None:
    row = make_row(6, 2)
    row.schedule(6)
    assert row.remaining_count == 1
    row.schedule(1)
    assert row.remaining_count == 0, "the token at the limit is on its way, and nothing follows it"


def test_a_token_that_comes_back_changes_no_count() -> None:
    row = make_row(6, 4)
    row.schedule(6)
    row.schedule(1)
    row.receive((42,))
    assert row.sequence.token_ids == [0, 1, 2, 3, 4, 5, 42]
    assert (row.scheduled_count, row.target_count) == (7, 8)


def test_several_tokens_move_both_counts() -> None:
    row = make_row(6, 8)
    row.schedule(6)
    row.receive((42, 43, 44))
    assert row.sequence.token_ids[6:] == [42, 43, 44]
    assert (row.scheduled_count, row.target_count) == (8, 9), "all that is known but the last is computed"


@pytest.mark.parametrize(("tokens", "hit_count"), [((42,), 4), ((42, 43), 4), ((42, 43, 44), 8)])
def test_tokens_commit_the_blocks_that_they_prove_computed(tokens: tuple[int, ...], hit_count: int) -> None:
    kv = KvMemory(block_size=4, block_count=10)
    row = make_row(6, 8, kv)
    row.table.grow(1)
    row.schedule(6)
    row.receive(tokens)
    assert kv.match(make_request([*range(6), 42, 43, 44, 45])) == hit_count


def test_answers_short_of_the_target_commit_too() -> None:
    kv = KvMemory(block_size=4, block_count=10)
    row = make_row(6, 8, kv)
    row.schedule(5)
    assert kv.match(make_request(range(6))) == 0, "planned is not computed"
    row.note_computed(5)
    assert kv.match(make_request(range(6))) == 4


def test_says_what_is_inconsistent() -> None:
    row = make_row(6, 4)
    assert row.violations() == []
    row.sequence.become(SequenceState.WAITING)
    row.scheduled_count = 9
    assert row.violations() == [
        "Sequence(1, waiting, 6 of 10 tokens) has a row",
        "Sequence(1, waiting, 6 of 10 tokens): scheduled 9, target 6",
        "Sequence(1, waiting, 6 of 10 tokens): scheduled 9 in 8 slots",
    ]

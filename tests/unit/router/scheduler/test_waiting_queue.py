import random

import pytest
from scheduler_rig import make_request

from headrace.router.sequence import Sequence
from headrace.router.tenant_shares import TenantShares
from headrace.router.waiting_queue import WaitingQueue


def make_sequence(sequence_id: int, arrival_s: float = 0.0, token_count: int = 3) -> Sequence:
    return Sequence(sequence_id=sequence_id, request=make_request(range(token_count)), arrival_s=arrival_s)


@pytest.fixture
def queue() -> WaitingQueue:
    return WaitingQueue(lambda sequence: sequence.arrival_s, TenantShares({}))


def test_an_empty_queue_has_no_head(queue: WaitingQueue) -> None:
    assert queue.head is None
    assert len(queue) == 0


def test_keeps_its_order_whatever_the_order_of_arrival(queue: WaitingQueue) -> None:
    sequences = [make_sequence(index, arrival_s=index // 3) for index in range(30)]
    shuffled = list(sequences)
    random.Random(1).shuffle(shuffled)
    for sequence in shuffled:
        queue.push(sequence)
    assert list(queue) == sequences


def test_a_tenant_of_its_own_is_served_by_urgency_alone(queue: WaitingQueue) -> None:
    first, second = make_sequence(1, arrival_s=1.0), make_sequence(2, arrival_s=0.0)
    first.admission_count = 1  # it ran and gave way, and something more urgent has come since
    queue.push(first)
    queue.push(second)
    assert queue.head is second


def test_anyone_can_leave(queue: WaitingQueue) -> None:
    sequences = [make_sequence(index) for index in range(5)]
    for sequence in sequences:
        queue.push(sequence)
    queue.remove(sequences[2])
    queue.remove(sequences[0])
    assert list(queue) == [sequences[1], sequences[3], sequences[4]]
    assert queue.head is sequences[1]


def test_counts_the_tokens_as_they_came(queue: WaitingQueue) -> None:
    first, second = make_sequence(1, token_count=3), make_sequence(2, token_count=5)
    queue.push(first)
    queue.push(second)
    assert queue.token_count == 8
    first.token_ids.append(9)
    queue.remove(first)
    assert queue.token_count == 5
    queue.push(first)
    assert queue.token_count == 9
    queue.clear()
    assert (queue.token_count, len(queue)) == (0, 0)

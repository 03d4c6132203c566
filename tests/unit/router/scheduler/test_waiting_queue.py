import random

import pytest
from scheduler_rig import make_request

from headrace.router.sequence import Sequence
from headrace.router.tenant_shares import TenantShares
from headrace.router.waiting_queue import WaitingQueue


def make_sequence(sequence_id: int, arrival_s: float = 0.0, token_count: int = 3, tenant: str = "") -> Sequence:
    request = make_request(range(token_count), tenant=tenant)
    return Sequence(sequence_id=sequence_id, request=request, arrival_s=arrival_s)


class Shares(TenantShares):
    """Counters that a test raises."""

    def add(self, tenant: str, token_count: int) -> None:
        self._counts[tenant] += token_count


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


def test_the_head_is_that_of_a_search_through_all_whatever_happens() -> None:
    """Tenants come and go, what they had rises, and what ran before comes back among what is new."""
    random_source = random.Random(4)
    shares = Shares({})
    queue = WaitingQueue(lambda sequence: sequence.arrival_s, shares)
    waiting: list[Sequence] = []
    for number in range(4000):
        action = random_source.random()
        if action < 0.5 or not waiting:
            tenant = f"tenant-{random_source.randrange(1 + number // 50)}"
            sequence = make_sequence(number, arrival_s=random_source.randrange(1000), tenant=tenant)
            sequence.admission_count = random_source.random() < 0.05
            queue.push(sequence)
            waiting.append(sequence)
        elif action < 0.75:
            queue.remove(waiting.pop(random_source.randrange(len(waiting))))
        else:
            shares.add(random_source.choice(waiting).request.tenant, random_source.randrange(50))
        assert queue.head is first_of(waiting, shares), number


def first_of(waiting: list[Sequence], shares: TenantShares) -> Sequence | None:
    heads: dict[str, Sequence] = {}
    for sequence in sorted(waiting, key=lambda sequence: (sequence.arrival_s, sequence.sequence_id)):
        heads.setdefault(sequence.request.tenant, sequence)

    def turn(head: Sequence) -> tuple[bool, int, float, int]:
        count = 0 if head.admission_count else shares.count(head.request.tenant)
        return not head.admission_count, count, head.arrival_s, head.sequence_id

    return min(heads.values(), key=turn, default=None)


def test_a_choice_among_very_many_tenants_looks_at_few() -> None:
    asked: list[Sequence] = []

    def urgency(sequence: Sequence) -> float:
        asked.append(sequence)
        return sequence.arrival_s

    shares = Shares({})
    queue = WaitingQueue(urgency, shares)
    for number in range(2000):
        queue.push(make_sequence(number, arrival_s=number, tenant=f"tenant-{number}"))
    asked.clear()
    for number in range(2000, 2100):
        head = queue.head
        assert head is not None
        queue.remove(head)
        shares.add(head.request.tenant, 5)
        queue.push(make_sequence(number, arrival_s=number, tenant=head.request.tenant))
    assert len(asked) < 100 * 50

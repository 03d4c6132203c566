"""Holds the sequences that wait for a row: each tenant's with the most urgent first, and tenants in turn."""

from collections.abc import Callable, Iterator
from heapq import merge

from headrace.router.rising_heap import RisingHeap
from headrace.router.sequence import Sequence
from headrace.router.sequence_queue import SequenceQueue
from headrace.router.tenant_shares import TenantShares


class WaitingQueue:
    """The order of admission, and how much work it holds.

    What has run before goes first: a preempted sequence comes back to the place
    that it had. After it comes the tenant that has had the least, with its most
    urgent sequence. With one tenant that is the order of urgency. Ten thousand
    of them cost a choice a few microseconds.
    """

    __slots__ = ("_queues", "_shares", "_tenants", "_token_counts", "_urgency", "token_count")

    def __init__(self, urgency: Callable[[Sequence], float], shares: TenantShares) -> None:
        self._urgency = urgency
        self._shares = shares
        self._queues: dict[str, SequenceQueue] = {}
        """By tenant; none is empty."""
        # Counters rise only, and a tenant is pushed again whenever another sequence is its first.
        self._tenants: RisingHeap[str] = RisingHeap(self._turn)
        self._token_counts: dict[int, int] = {}
        self.token_count = 0
        """Tokens of all sequences, each counted when it joined the queue."""

    @property
    def head(self) -> Sequence | None:
        """The sequence whose turn it is."""
        tenant = self._tenants.least
        return None if tenant is None else self._queues[tenant].head

    def settle(self) -> None:
        """Brings what each tenant has had up to date, if there is a choice between tenants; between plans is enough."""
        if len(self._queues) > 1:
            self._shares.settle()

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence, wherever its urgency puts it among its tenant's."""
        tenant = sequence.request.tenant
        queue = self._queues.get(tenant)
        if queue is None:
            self._shares.begin_to_wait(tenant)
            queue = self._queues[tenant] = SequenceQueue(self._urgency)
        queue.push(sequence)
        if queue.head is sequence:
            self._tenants.push(tenant)
        self._token_counts[sequence.sequence_id] = len(sequence.token_ids)
        self.token_count += len(sequence.token_ids)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out. It must be in."""
        tenant = sequence.request.tenant
        queue = self._queues[tenant]
        was_first = queue.head is sequence
        queue.remove(sequence)
        if not queue:
            del self._queues[tenant]
            self._shares.end_to_wait(tenant)
        elif was_first:
            self._tenants.push(tenant)
        self.token_count -= self._token_counts.pop(sequence.sequence_id)

    def clear(self) -> None:
        """Takes every sequence out."""
        for tenant in self._queues:
            self._shares.end_to_wait(tenant)
        self._queues.clear()
        self._tenants.clear()
        self._token_counts.clear()
        self.token_count = 0

    def __iter__(self) -> Iterator[Sequence]:
        """Yields all sequences in the order of urgency, whoever's they are."""
        return merge(*self._queues.values(), key=lambda sequence: (self._urgency(sequence), sequence.sequence_id))

    def __len__(self) -> int:
        return len(self._token_counts)

    def _turn(self, tenant: str) -> tuple[bool, int, float, int] | None:
        """Returns the key of the order between the heads of tenants, the lower the sooner; None if it has none."""
        queue = self._queues.get(tenant)
        head = None if queue is None else queue.head
        if head is None:
            return None
        is_new = head.admission_count == 0
        count = self._shares.count(tenant) if is_new else 0
        return is_new, count, self._urgency(head), head.sequence_id

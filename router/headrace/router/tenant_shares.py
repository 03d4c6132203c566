"""How much of an engine each tenant has had, so that those who wait for it take turns.

The idea is that of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024): a counter of the tokens that were computed for each tenant, of
prompts and of completions; whoever waits with the lowest one is next. A tenant
that comes after a pause is lifted to the lowest of those that wait, or, if
nobody waits, to that of the tenant whose queue was the last to be empty: so
nobody saves up turns, and using an idle engine costs nobody any.
"""

from collections.abc import Mapping

from headrace.router.rising_heap import RisingHeap
from headrace.router.row import Row


class TenantShares:
    """Counts the tokens of tenants. Those of rows are counted when somebody asks, so that a token costs nothing."""

    __slots__ = ("_counts", "_last_tenant", "_lowest", "_rows", "_waiting")

    def __init__(self, rows: Mapping[int, Row]) -> None:
        """Takes the rows of the batch, as they are at any time."""
        self._rows = rows
        self._counts: dict[str, int] = {}
        """By tenant. One that was here once stays: there are as many as an operator has named."""
        self._waiting: set[str] = set()
        self._lowest: RisingHeap[str] = RisingHeap(self._count_of_waiting)
        self._last_tenant = ""
        """The last one whose queue became empty."""

    def count(self, tenant: str) -> int:
        """Returns a tenant's counter, as of the last `settle`."""
        return self._counts[tenant]

    def settle(self) -> None:
        """Counts what was generated for rows since the last time."""
        for row in self._rows.values():
            self.count_tokens(row)

    def count_prompt(self, row: Row) -> None:
        """Counts the prompt of a row that joins the batch for the first time, but for what the prefix cache held.

        What a preemption makes to be computed again is not counted: it is not the tenant's doing.
        """
        request = row.sequence.request
        self._counts[request.tenant] += request.prompt_token_count - row.table.hit_token_count

    def count_tokens(self, row: Row) -> None:
        """Counts what was generated for a row since the last time. Call it when one leaves the batch."""
        self._counts[row.sequence.request.tenant] += row.take_uncounted()

    def begin_to_wait(self, tenant: str) -> None:
        """Notes that a tenant has something to wait for, which had nothing."""
        if len(self._counts) == (tenant in self._counts):
            self._counts.setdefault(tenant, 0)  # nobody else has ever been here
        else:
            self.settle()
            lowest = self._lowest.least
            least = self._counts[self._last_tenant if lowest is None else lowest]
            self._counts[tenant] = max(self._counts.get(tenant, 0), least)
        self._waiting.add(tenant)
        self._lowest.push(tenant)

    def end_to_wait(self, tenant: str) -> None:
        """Notes that a tenant has nothing to wait for any more."""
        self._waiting.remove(tenant)
        self._last_tenant = tenant

    def _count_of_waiting(self, tenant: str) -> int | None:
        return self._counts[tenant] if tenant in self._waiting else None

"""Tenants that wait get the same from an engine, whatever they ask for and whenever they come."""

import os
from itertools import combinations, count

from hypothesis import given, settings
from hypothesis import strategies as st
from model_shard import VOCABULARY_SIZE
from scheduler_rig import SchedulerRig, make_request

from headrace.router.scheduler import SchedulerLimits
from headrace.router.sequence import Sequence, SequenceState

SETTINGS = settings(max_examples=150, deadline=None, derandomize="CI" in os.environ, print_blob=True)
PROMPT_LIMIT, NEW_LIMIT = 10, 10
TENANTS = ("shop", "bank", "club")

bursts = st.tuples(
    st.sampled_from(TENANTS), st.integers(1, PROMPT_LIMIT), st.integers(1, NEW_LIMIT), st.integers(1, 25)
)
stories = st.lists(st.one_of(bursts, st.integers(1, 30)), min_size=2, max_size=12)
limits_of_any_size = st.builds(
    SchedulerLimits,
    block_size=st.integers(1, 4),
    block_count=st.integers(20, 60),
    step_token_limit=st.integers(4, 30),
    step_row_limit=st.integers(1, 4),
    steps_in_flight=st.integers(1, 2),
)


class Story:
    """Bursts of requests, and steps between them and after them."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.rig = SchedulerRig(limits)
        self.everybody: list[Sequence] = []
        # What a tenant may be ahead of another: a last prompt, and all that its rows bring once they run. Both
        # may be so at the beginning of a time and at its end.
        self.lead_limit = 2 * (PROMPT_LIMIT + limits.step_row_limit * (NEW_LIMIT + PROMPT_LIMIT))
        self._begun: dict[frozenset[str], dict[str, int]] = {}
        """What both of two tenants had had when they began to wait side by side."""
        self._numbers = count()

    def tell(self, events: list[tuple[str, int, int, int] | int]) -> None:
        for event in [*events, 10_000]:
            if isinstance(event, int):
                for _ in range(event):
                    if not self.rig.sequences:
                        break
                    self.rig.step()
                    self.check_order()
                    self.check_leads()
            else:
                self.submit(*event)
        assert not self.rig.sequences

    def submit(self, tenant: str, prompt_count: int, new_count: int, times: int) -> None:
        for number in (next(self._numbers) for _ in range(times)):
            prompt = [(number * 7 + position) % VOCABULARY_SIZE for position in range(prompt_count)]
            request = make_request(prompt, new_count, tenant=tenant, cache_salt=str(number))
            self.everybody.append(self.rig.submit(request, arrival_s=float(number)))

    def check_order(self) -> None:
        """Nobody overtakes another request of the same tenant."""
        for tenant in TENANTS:
            own = [sequence.admission_count > 0 for sequence in self.everybody if sequence.request.tenant == tenant]
            assert own == sorted(own, reverse=True), tenant

    def check_leads(self) -> None:
        """No tenant that waits falls behind another one by more than a few requests."""
        had = {tenant: self.had(tenant) for tenant in TENANTS}
        waiting = {sequence.request.tenant for sequence in self.everybody if sequence.state is SequenceState.WAITING}
        pairs = {frozenset(pair) for pair in combinations(sorted(waiting), 2)}
        self._begun = {pair: self._begun.get(pair, had) for pair in pairs}
        for pair, before in self._begun.items():
            one, other = sorted(pair)
            lead = (had[one] - before[one]) - (had[other] - before[other])
            assert abs(lead) <= self.lead_limit, (one, other, lead)

    def had(self, tenant: str) -> int:
        """The tokens that were computed for a tenant, told by its sequences."""
        started = (s for s in self.everybody if s.request.tenant == tenant and s.admission_count > 0)
        return sum(len(sequence.token_ids) - sequence.cached_token_count for sequence in started)


@SETTINGS
@given(limits_of_any_size, stories)
def test_tenants_that_wait_get_the_same(limits: SchedulerLimits, events: list[tuple[str, int, int, int] | int]) -> None:
    Story(limits).tell(events)

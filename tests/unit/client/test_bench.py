from dataclasses import replace
from itertools import islice

import pytest

from headrace.client.bench_load import Pace, Workload, poisson_arrivals_s
from headrace.client.bench_profile import profile_table, step_profile
from headrace.client.bench_summary import Percentiles, RequestRecord, mean_batch, nearest_rank, summarize
from headrace.client.bench_table import as_json, heading, progress_bar, table
from headrace.client.operations import Load, ModelLimits, Replica, ReplicaLoad, ReplicaState, StepProfile

LIMITS = ModelLimits(
    context_token_count=256,
    prompt_token_count=200,
    vocabulary_size=1000,
    stop_sequence_count=1,
    stop_sequence_size_bytes=1,
    stop_token_count=1,
    completion_count=1,
    top_logprob_count=1,
    message_size_bytes=1,
)


def record(due_s: float, *deltas: tuple[float, int], cached: int = 0, failed: str = "") -> RequestRecord:
    made = RequestRecord(due_s=due_s, prompt_token_count=10 if deltas else 0, cached_token_count=cached)
    for time_s, token_count in deltas:
        made.add(time_s, token_count)
    made.outcome = failed or "length"
    made.ended_s = None if failed else deltas[-1][0] + 0.5
    return made


def load(row_count: int = 0, step_count: int = 0, profile: StepProfile | None = None) -> Load:
    counters = dict.fromkeys(ReplicaLoad.__dataclass_fields__, 0) | {"row_count": row_count, "step_count": step_count}
    counters["profile"] = profile or StepProfile()
    replica = Replica(
        id="r", addresses=(), model="m", state=ReplicaState.SERVING, detail="", load=ReplicaLoad(**counters),
        restart_count=0,
    )  # fmt: skip
    return Load(
        waiting_count=0, waiting_token_count=0, waiting_limit=0, running_count=0, expected_wait_s=0, replicas=(replica,)
    )


def test_prompts_are_the_same_for_a_seed_and_share_their_prefix() -> None:
    workload = Workload(prompt_token_count=20, shared_prefix_token_count=8, seed=3)
    first, second = islice(workload.prompts(1000), 2)
    assert list(islice(workload.prompts(1000), 2)) == [first, second]
    assert first[:8] == second[:8]
    assert first[8:] != second[8:]
    assert next(replace(workload, seed=4).prompts(1000)) != first
    assert len(first) == 20
    assert all(0 <= token_id < 1000 for token_id in first + second)
    assert set(islice(Workload(prompt_token_count=200).prompts(2), 1).__next__()) == {0, 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_token_count": 0},
        {"new_token_count": 0},
        {"shared_prefix_token_count": 129},
        {"shared_prefix_token_count": -1},
    ],
)
def test_impossible_workloads_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="token"):
        Workload(**wrong)


def test_a_workload_that_the_model_cannot_take_is_refused_with_its_limit() -> None:
    Workload(prompt_token_count=200, new_token_count=56).check(LIMITS)
    with pytest.raises(ValueError, match="prompts of up to 200"):
        Workload(prompt_token_count=201).check(LIMITS)
    with pytest.raises(ValueError, match="up to 256 tokens"):
        Workload(prompt_token_count=200, new_token_count=57).check(LIMITS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_count": 1},
        {"stream_count": 1, "rate_per_s": 1.0, "request_count": 1},
        {"stream_count": 1},
        {"stream_count": 0, "request_count": 1},
        {"rate_per_s": 1.0, "duration_s": -1.0},
    ],
)
def test_a_pace_needs_one_kind_of_loop_and_an_end(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Pace(**wrong)


def test_a_closed_loop_is_always_due_and_an_open_one_ends_with_its_time_or_its_requests() -> None:
    assert list(Pace(stream_count=2, request_count=3).due_times_s(0)) == [0.0, 0.0, 0.0]
    within = list(Pace(rate_per_s=100.0, duration_s=2.0).due_times_s(1))
    assert 150 < len(within) < 250
    assert max(within) < 2.0
    assert list(Pace(rate_per_s=100.0, request_count=5).due_times_s(1)) == within[:5]
    assert len(list(Pace(rate_per_s=100.0, request_count=5, duration_s=0.001).due_times_s(1))) < 5


def test_arrivals_have_exponential_gaps_of_the_right_mean() -> None:
    times = list(islice(poisson_arrivals_s(4.0, 7), 20_000))
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.03)
    # The median of an exponential distribution is its mean times ln 2, well below the mean.
    assert sorted(gaps)[10_000] == pytest.approx(0.25 * 0.693, rel=0.03)


def test_percentiles_are_values_that_were_observed() -> None:
    assert Percentiles.of(range(1, 101)) == Percentiles(p50=50, p90=90, p99=99, max=100)
    assert Percentiles.of([7.0]) == Percentiles(p50=7, p90=7, p99=7, max=7)
    assert Percentiles.of([3, 1, 2]) == Percentiles(p50=2, p90=3, p99=3, max=3)
    assert Percentiles.of([]) is None
    assert nearest_rank([1, 2, 3, 4], 25) == 1


def test_a_summary_worked_out_by_hand() -> None:
    records = [
        record(0.0, (1.0, 1), (1.5, 2), (3.5, 1), cached=4),
        record(1.0, (1.25, 2), (4.5, 1)),
        record(2.0, failed="QUEUE_FULL"),
        record(2.0, (3.0, 1), failed="UNAVAILABLE"),
    ]
    found = summarize(records, duration_s=None, mean_batch=2.5)
    assert (found.request_count, found.completed_count) == (4, 2)
    assert found.window_s == 4.5
    assert found.generated_tokens_per_s == 8 / 4.5
    assert found.prompt_tokens_per_s == 30 / 4.5
    assert found.time_to_first_token_s == Percentiles.of([1.0, 0.25, 1.0])
    assert found.inter_token_s == Percentiles.of([0.5, 2.0, 3.25])
    assert found.end_to_end_s == Percentiles.of([4.0, 4.0])
    assert found.tokens_per_delta == 8 / 6
    assert (found.prompt_token_count, found.cached_token_count, found.mean_batch) == (30, 4, 2.5)
    assert found.outcomes == {"length": 2, "QUEUE_FULL": 1, "UNAVAILABLE": 1}


def test_rates_count_only_what_came_within_the_duration() -> None:
    found = summarize([record(0.0, (1.0, 1), (2.0, 1)), record(0.0, (3.0, 5))], duration_s=2.0, mean_batch=None)
    assert (found.window_s, found.generated_tokens_per_s, found.prompt_tokens_per_s) == (2.0, 1.0, 5.0)
    assert found.time_to_first_token_s == Percentiles.of([1.0, 3.0])


def test_nothing_at_all_can_be_summarized_and_shown() -> None:
    empty = summarize([], duration_s=None, mean_batch=None)
    assert (empty.generated_tokens_per_s, empty.tokens_per_delta, empty.outcomes) == (0.0, None, {})
    assert "nothing was sent" in table(Pace(stream_count=1, request_count=1), empty)


def test_the_mean_batch_is_rows_per_step_between_two_reports() -> None:
    assert mean_batch(load(10, 5), load(90, 15)) == 8.0
    assert mean_batch(load(10, 5), load(10, 5)) is None
    assert mean_batch(load(100, 5), load(3, 7)) is None


def test_the_table_says_what_was_measured() -> None:
    pace = Pace(stream_count=1, request_count=2)
    summary = summarize(
        [record(0.0, (0.1, 1), (0.3, 1)), record(0.0, failed="QUEUE_FULL")], duration_s=None, mean_batch=1.5
    )
    assert table(pace, summary).splitlines() == [
        "1 stream: 1 of 2 requests completed in 0.3 s",
        "  milliseconds               p50       p90       p99       max",
        "  time to first token      100.0     100.0     100.0     100.0",
        "  between tokens           200.0     200.0     200.0     200.0",
        "  end to end               800.0     800.0     800.0     800.0",
        "  generated 6.7 tokens/s, prompts 33.3 tokens/s",
        "  0 of 10 prompt tokens cached, mean batch 1.5, 1.00 tokens per delta",
        "  ended by: length 1, QUEUE_FULL 1",
    ]
    assert Pace(rate_per_s=2.5, request_count=1).title == "2.5 requests/s"
    workload = Workload(prompt_token_count=20, new_token_count=5, shared_prefix_token_count=8, seed=3)
    assert heading("m", "host:1", workload) == "m at host:1: prompts of 20 tokens (8 shared), answers of 5, seed 3"
    assert as_json(pace, summary)["pace"] == {
        "stream_count": 1, "rate_per_s": None, "request_count": 2, "duration_s": None,
    }  # fmt: skip


def test_the_profile_of_a_load_is_what_the_server_added_up_meanwhile() -> None:
    before = StepProfile(
        step_count=10, queued_s=1.0, prepare_s=1.0, forward_s=1.0, sample_s=1.0, round_trip_s=9.0, in_flight_s=5.0
    )
    after = StepProfile(
        step_count=14,
        queued_s=1.03,
        prepare_s=1.004,
        forward_s=1.064,
        sample_s=1.008,
        round_trip_s=9.12,
        in_flight_s=5.08,
    )
    found = step_profile(load(profile=before), load(profile=after))
    assert found is not None
    assert found.waiting_s == pytest.approx(0.004)
    assert profile_table(found).splitlines() == [
        "  milliseconds of a step      mean   share   over 4 steps",
        "  prepare                     1.00    5.0%   from the plan to the model's inputs",
        "  forward                    16.00   80.0%   the model",
        "  sample                      2.00   10.0%   from logits to tokens",
        "  wait                        1.00    5.0%   the engine had no plan: wire and router",
        "  together                   20.00  100.0%",
        "  beside these, hidden by the step before: 7.50 queued in the shard, 3.50 under way",
    ]
    assert step_profile(load(profile=before), load(profile=before)) is None
    assert step_profile(load(profile=after), load(profile=before)) is None


def test_the_bar_fills_and_never_overflows() -> None:
    assert progress_bar("8 streams", 0.5, 1).endswith(f"8 streams [{'#' * 15}{'.' * 15}] 1 request")
    assert progress_bar("x", 1.7, 2).endswith(f"[{'#' * 30}] 2 requests")

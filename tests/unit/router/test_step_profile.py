from headrace.contract.step import StepTimings
from headrace.router.step_profile import StepProfile, StepProfiler


def test_overlapping_steps_share_the_time_in_flight_and_pauses_are_no_part_of_it() -> None:
    profiler = StepProfiler()
    first = StepTimings(queued_s=0.0, prepare_s=1.0, forward_s=6.0, sample_s=2.0)
    second = StepTimings(queued_s=8.0, prepare_s=1.0, forward_s=7.0, sample_s=2.0)
    profiler.add(first, sent_s=100.0, answered_s=110.0)
    profiler.add(second, sent_s=101.0, answered_s=121.0)
    profiler.add(StepTimings(forward_s=3.0), sent_s=200.0, answered_s=204.0)
    assert profiler.snapshot() == StepProfile(
        step_count=3,
        queued_s=8.0,
        prepare_s=2.0,
        forward_s=16.0,
        sample_s=4.0,
        round_trip_s=10.0 + 20.0 + 4.0,
        in_flight_s=21.0 + 4.0,
    )


def test_a_snapshot_does_not_count_on() -> None:
    profiler = StepProfiler()
    snapshot = profiler.snapshot()
    profiler.add(StepTimings(), sent_s=1.0, answered_s=2.0)
    assert snapshot == StepProfile()

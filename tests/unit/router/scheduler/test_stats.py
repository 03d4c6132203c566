from dataclasses import fields

from headrace.router.stats import COUNTER_NAMES, SchedulerCounters, SchedulerStats


def numbered() -> SchedulerStats:
    return SchedulerStats(**{field.name: number for number, field in enumerate(fields(SchedulerStats), start=1)})


def test_every_counter_is_a_field() -> None:
    assert set(COUNTER_NAMES) < {field.name for field in fields(SchedulerStats)}


def test_a_successor_goes_on_counting_with_gauges_of_its_own() -> None:
    present, past = numbered(), numbered()
    total = present.after(past)
    for field in fields(SchedulerStats):
        factor = 2 if field.name in COUNTER_NAMES else 1
        assert getattr(total, field.name) == factor * getattr(present, field.name)


def test_without_gauges_only_counters_are_left() -> None:
    rest = numbered().without_gauges()
    for field in fields(SchedulerStats):
        assert getattr(rest, field.name) == (getattr(numbered(), field.name) if field.name in COUNTER_NAMES else 0)


def test_a_snapshot_does_not_count_on() -> None:
    counters = SchedulerCounters(step_count=3)
    snapshot = counters.snapshot(running_count=2)
    counters.step_count += 1
    assert snapshot == SchedulerStats(step_count=3, running_count=2)

"""How the numbers of a load test are shown: a table for a person, and values for a file."""

from dataclasses import asdict

from headrace.client.bench_load import Pace, Workload
from headrace.client.bench_summary import Percentiles, Summary

_TIMES = (
    ("time to first token", "time_to_first_token_s"),
    ("between tokens", "inter_token_s"),
    ("end to end", "end_to_end_s"),
)


def heading(model: str, target: str, workload: Workload) -> str:
    """Returns a line that says what every request is."""
    shared = f" ({workload.shared_prefix_token_count} shared)" if workload.shared_prefix_token_count else ""
    return (
        f"{model} at {target}: prompts of {workload.prompt_token_count} tokens{shared}, "
        f"answers of {workload.new_token_count}, seed {workload.seed}"
    )


def table(pace: Pace, summary: Summary) -> str:
    """Returns the numbers of one load for a person."""
    requests = f"{summary.completed_count} of {_plural(summary.request_count, 'request')}"
    lines = [
        f"{pace.title}: {requests} completed in {summary.window_s:.1f} s",
        f"  {'milliseconds':<20}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    lines += [f"  {title:<20}{_milliseconds(getattr(summary, name))}" for title, name in _TIMES]
    lines.append(
        f"  generated {summary.generated_tokens_per_s:.1f} tokens/s, prompts {summary.prompt_tokens_per_s:.1f} tokens/s"
    )
    notes = [f"{summary.cached_token_count} of {summary.prompt_token_count} prompt tokens cached"]
    if summary.mean_batch is not None:
        notes.append(f"mean batch {summary.mean_batch:.1f}")
    if summary.tokens_per_delta is not None:
        notes.append(f"{summary.tokens_per_delta:.2f} tokens per delta")
    lines.append(f"  {', '.join(notes)}")
    outcomes = ", ".join(f"{reason} {count}" for reason, count in summary.outcomes.items())
    lines.append(f"  ended by: {outcomes or 'nothing was sent'}")
    return "\n".join(lines)


def as_json(pace: Pace, summary: Summary) -> dict[str, object]:
    """Returns the numbers of one load, unrounded, with how the load was made."""
    return {"pace": asdict(pace), "summary": asdict(summary)}


def progress_bar(title: str, share: float, ended_count: int) -> str:
    """Returns a line of progress; a carriage return goes before the next one."""
    width = 30
    filled = min(width, int(width * share))
    return f"\r\033[K{title} [{'#' * filled}{'.' * (width - filled)}] {_plural(ended_count, 'request')}"


def _milliseconds(percentiles: Percentiles | None) -> str:
    if percentiles is None:
        return f"{'-':>10}" * 4
    values = (percentiles.p50, percentiles.p90, percentiles.p99, percentiles.max)
    return "".join(f"{value * 1e3:10.1f}" for value in values)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

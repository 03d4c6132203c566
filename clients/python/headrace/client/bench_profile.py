"""Where the time of a server's steps went during a load, and how that is shown."""

from dataclasses import fields

from headrace.client.operations import Load, StepProfile

_PARTS = (
    ("prepare", "prepare_s", "from the plan to the model's inputs"),
    ("forward", "forward_s", "the model"),
    ("sample", "sample_s", "from logits to tokens"),
    ("wait", "waiting_s", "the engine had no plan: wire and router"),
)


def step_profile(before: Load, after: Load) -> StepProfile | None:
    """Returns what the steps between two reports of a router took; None if there was none or a replica left."""
    total = StepProfile(
        **{
            field.name: sum(getattr(replica.load.profile, field.name) for replica in after.replicas)
            - sum(getattr(replica.load.profile, field.name) for replica in before.replicas)
            for field in fields(StepProfile)
        }
    )
    return total if total.step_count > 0 and total.in_flight_s > 0 else None


def profile_table(profile: StepProfile) -> str:
    """Returns the mean step, part by part, for a person."""
    count, total_s = profile.step_count, profile.in_flight_s
    lines = [f"  {'milliseconds of a step':<24}{'mean':>8}{'share':>8}   over {count} steps"]
    for title, name, meaning in _PARTS:
        part_s = getattr(profile, name)
        lines.append(f"  {title:<24}{part_s / count * 1e3:8.2f}{part_s / total_s:8.1%}   {meaning}")
    lines.append(f"  {'together':<24}{total_s / count * 1e3:8.2f}{1:8.1%}")
    under_way_s = profile.round_trip_s - profile.queued_s - (total_s - profile.waiting_s)
    lines.append(
        f"  beside these, hidden by the step before: {profile.queued_s / count * 1e3:.2f} queued in the shard, "
        f"{under_way_s / count * 1e3:.2f} under way"
    )
    return "\n".join(lines)

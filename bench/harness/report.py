"""A result as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.spread import Spread, paired_ratios

Result = Mapping[str, Any]
"""What `run.py` writes as JSON."""


_LEGEND = (
    "Medians of the rounds, with their least and most. A ratio is the median of the rounds' ratios, ours over theirs "
    "for rates and theirs over ours for times: above 1 headrace is ahead."
)


def page(result: Result) -> str:
    """Returns the whole result."""
    parts = [
        f"# {result['name']}",
        _LEGEND,
        _circumstances(result),
        *(_workload(name, entry) for name, entry in result.get("workloads", {}).items()),
        *_singles(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Returns a number with three digits that count, or all before the point."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread_cell(values: Sequence[float]) -> str:
    """Returns a median with its spread."""
    spread = Spread.of(values)
    return f"{number(spread.median)} ({number(spread.least)}..{number(spread.most)})"


def ratio_cell(ours: Sequence[float], theirs: Sequence[float], *, is_rate: bool) -> str:
    """Returns how far headrace is ahead, over the rounds that both ran."""
    count = min(len(ours), len(theirs))
    pair = (ours[:count], theirs[:count])
    spread = paired_ratios(*(pair if is_rate else pair[::-1]))
    return f"{spread.median:.2f} ({spread.least:.2f}..{spread.most:.2f})"


def _circumstances(result: Result) -> str:
    machine = result["machine"]
    return (
        f"{machine['processor']}, {machine['cpu_count']} cores, {machine['memory_gib']} GiB, {machine['system']}. "
        f"headrace at {result['revision']}; torch {machine['torch']}. {_peers(result)}"
    )


def _peers(result: Result) -> str:
    installed = [f"{name} {entry['version']}" for name, entry in result["systems"].items() if entry["version"]]
    missing = [name for name, entry in result["systems"].items() if not entry["version"]]
    text = f"Measured: {', '.join(installed)}."
    return f"{text} Not installed: {', '.join(missing)}." if missing else text


def _workload(name: str, entry: Result) -> str:
    rows: list[list[str]] = []
    for figure in entry["figures"]:
        measured = {system: values[figure["name"]] for system, values in entry["systems"].items()}
        for system, values in measured.items():
            ours = measured.get("headrace", [])
            is_peer = system != "headrace" and bool(ours)
            ratio = ratio_cell(ours, values, is_rate=figure["is_rate"]) if is_peer else ""
            rows.append([f"{figure['name']}, {figure['unit']}", system, spread_cell(values), ratio])
    table = markdown_table(["figure", "system", "median", "ratio"], rows)
    return f"## {entry['title']} (`{name}`)\n\n{table}\n\n{_others(entry)}{_pace(entry)}"


def _pace(entry: Result) -> str:
    if "pace" not in entry:
        return ""
    units = {"products": "products, TFLOP/s", "reads": "reads, GB/s", "loops": "Python, M loops/s"}
    rows = [[system, *(spread_cell(values[name]) for name in units)] for system, values in entry["pace"].items()]
    return "\n\nThe machine itself, before and after each run:\n\n" + markdown_table(["beside", *units.values()], rows)


def _others(entry: Result) -> str:
    return (
        f"Meanwhile the systems that were not measured took at most {entry['idle_share']:.1%} of a core, "
        f"and the rest of the machine {entry['foreign_share']:.1%}."
    )


def _singles(result: Result) -> Iterable[str]:
    if "steps" in result:
        rows = [
            [row["weights"], str(row["rows"]), number(row["step_s"] * 1e3), number(row["library_s"] * 1e3),
             f"{row['step_s'] / row['library_s']:.2f}"]
            for row in result["steps"]
        ]  # fmt: skip
        head = ["weights", "rows", "step, ms", "its products alone (oneDNN, bf16), ms", "ratio"]
        yield "## A step and its matrix products\n\n" + markdown_table(head, rows)
    if "profiles" in result:
        names = ("prepare_s", "forward_s", "sample_s", "waiting_s")
        rows = [
            [name, *(number(profile[part] / profile["step_count"] * 1e3) for part in names)]
            for name, profile in result["profiles"].items()
        ]
        head = ["workload", "prepare, ms", "forward, ms", "sample, ms", "waiting for a plan, ms"]
        yield "## Where a step's time goes\n\n" + markdown_table(head, rows)
    if "start" in result:
        yield (
            "## Start to first token\n\n"
            f"{spread_cell(result['start'])} seconds from the command to the first token at the client."
        )
    if "router" in result:
        rows = [[name, unit, spread_cell(values)] for name, unit, values in _router_rows(result["router"])]
        table = markdown_table(["figure", "unit", "median"], rows)
        yield f"## Router alone\n\n{table}\n\n{_others(result['router'])}{_pace(result['router'])}"


def _router_rows(router: Result) -> Iterable[tuple[str, str, Sequence[float]]]:
    units = {
        "cpu": "us of CPU per token, 64 streams",
        "sidecar_cpu": "us of CPU per token on top, HTTP, 64 streams",
        "sidecar_first_token": "ms added to the first token, HTTP",
        "latency": "ms added per token, 32 streams",
    }
    for kind, unit in units.items():
        for name, values in router.get(kind, {}).items():
            yield name, unit, values

"""Writes docs/settings.md, docs/logs.md and docs/metrics.md from the code that they describe.

A test (`--check`) fails while a page is not up to date.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from headrace.services.log import EVENT_TEXTS, KEY_TEXTS
from headrace.services.settings import PROCESSES
from headrace.services.settings_loader import aliases_of, flag_of, is_flag_only, variable_of
from headrace.services.telemetry.metric import Metric
from headrace.services.telemetry.tgi_metrics import TGI_METRICS
from headrace.services.telemetry.vocabulary import VOCABULARY

ROOT = Path(__file__).resolve().parent.parent

SETTINGS_HEAD = """# Settings

<!-- Written by `make fmt` from services/headrace/services/settings.py. -->

Every setting has one name in three places: the flag `--step-row-limit`, the variable `HEADRACE_STEP_ROW_LIMIT` and
the key `step_row_limit` in a TOML file named by `--config` or `HEADRACE_CONFIG`. A flag beats a variable, which beats
the file, which beats the default. A name that no command knows stops the start and is named, with the nearest known
one; so is a value out of range, with where it came from. One environment or file may serve all commands: each takes
what is its own.

Lists are repeated flags, variables with commas, and arrays in the file. Sizes are bytes or have a unit, such as `4GiB`.
Variables that Kubernetes sets for a service named `headrace` are ignored, which is why `--port` has no variable.
"""

LOGS_HEAD = """# Log events

<!-- Written by `make fmt` from services/headrace/services/log.py. -->

A line of the log is one of these events with some of these keys; prompts, completions, tokens and secrets are never
logged. Lines go to standard error, as JSON unless that is a terminal; `--log-format` decides otherwise.
"""


METRICS_HEAD = """# Metrics

<!-- Written by `make fmt` from services/headrace/services/telemetry. -->

Every process answers Prometheus on an endpoint of its own, where it is given one:

```console
$ headrace serve smollm2-135m-instruct --metrics-address 9464
$ curl -s http://127.0.0.1:9464/metrics | grep headrace_time_to_first_token
```

A port alone is one of 127.0.0.1; `--metrics-address 0.0.0.0:9464` opens it to other machines. It speaks TLS where the
process has a certificate, and beyond loopback it must ([security.md](security.md)). It tells the names of models and
tenants to whoever may connect. Under `headrace serve` the first shard answers on the port after the router's, the
second on the next, and so on, and behind them the sidecar, if there is one. In one environment for several processes,
`HEADRACE_METRICS_ADDRESS` would give all of them the same port: use flags there. Without the setting nothing listens.

Counting costs a router about 30 ns a token, with or without the endpoint. A scrape copies the numbers on the event
loop, in about 20 µs a replica, and makes text of them on a thread of its own.

Labels are bounded. `model` is what requests call the model. `tenant` is whose a request is, the first hundred names
and then `other`; callers have no names as long as nobody asks for them, and then it is empty. `replica` is an id as in
`RouterService.ListReplicas`. A label that is empty is, to Prometheus, one that is not there.

What is told of sequences and steps (`headrace_queue_wait_seconds`, `headrace_time_to_first_token_seconds`,
`headrace_inter_token_seconds`, `headrace_step_...`) is per replica and counts while requests run; what is told of
requests counts when they end. The numbers of a replica go on when its shard is restarted, and are gone when it is
removed.

Some questions, and what answers them:

| question | query |
|---|---|
"""

QUERIES = {
    "How long do people wait for a first token?": "histogram_quantile(0.95, sum by (le) "
    "(rate(headrace_time_to_first_token_seconds_bucket[5m])))",
    "How quickly does text come?": "histogram_quantile(0.95, sum by (le) "
    "(rate(headrace_inter_token_seconds_bucket[5m])))",
    "How full is the KV cache?": 'sum(headrace_kv_blocks{state="used"}) / sum(headrace_kv_block_capacity)',
    "What does the prefix cache save?": "sum(rate(headrace_prefix_hit_tokens_total[5m])) / "
    "sum(rate(headrace_prefix_queried_tokens_total[5m]))",
    "Who is turned away, and why?": 'sum by (outcome) (rate(headrace_requests_total{outcome!="COMPLETED"}[5m]))',
    "How large are the batches?": "sum(rate(headrace_step_rows_sum[5m])) / sum(rate(headrace_step_rows_count[5m]))",
    "How much is guessed right?": "sum(rate(headrace_accepted_tokens_total[5m])) / "
    "sum(rate(headrace_drafted_tokens_total[5m]))",
    "How much of the time is a step under way?": "rate(headrace_steps_busy_seconds_total[5m])",
}

DASHBOARD_HEAD = """## Prometheus and Grafana

[deploy/prometheus/prometheus.yml](../deploy/prometheus/prometheus.yml) scrapes the processes of one machine, and
[deploy/grafana/headrace.json](../deploy/grafana/headrace.json) is a dashboard to import. A test checks its queries
against the tables above; `make test-prometheus` has a real Prometheus scrape a router and answer every one of them.
That last ran on 1 December 2026, with Prometheus 2.42.0 from Debian 12.
"""

METRICS_TITLES = {"router": "The router", "shard": "A shard", "rest": "The sidecar"}

TGI_HEAD = """## Names of Text Generation Inference

`headrace router` and `headrace serve` tell these as well with `--tgi-metric-names`, so that dashboards made for Text
Generation Inference go on. They have no labels but those named. Its metrics of single batches,
`tgi_batch_inference_duration` and the like, have no counterpart: they tell prefill from decode, and a step here does
both. `headrace_step_duration_seconds` and `headrace_time_to_first_token_seconds` say what one wants to know from them.
"""


def settings_page() -> str:
    """Returns docs/settings.md."""
    lines = [SETTINGS_HEAD]
    for command, kind in PROCESSES.items():
        lines += [f"## headrace {command}", "", (kind.__doc__ or "").strip(), "", "| flag | default | meaning |"]
        lines += ["|---|---|---|"]
        lines += [_row(name, field) for name, field in kind.model_fields.items()]
        lines += [""]
    return "\n".join(lines)


def logs_page() -> str:
    """Returns docs/logs.md."""
    events = [f"| `{event}` | {text} |" for event, text in EVENT_TEXTS.items()]
    keys = [f"| `{key}` | {text} |" for key, text in KEY_TEXTS.items()]
    head = [LOGS_HEAD, "| event | meaning |", "|---|---|"]
    return "\n".join([*head, *events, "", "## Keys", "", "| key | meaning |", "|---|---|", *keys, ""])


def metrics_page() -> str:
    """Returns docs/metrics.md."""
    lines = [METRICS_HEAD + "\n".join(f"| {question} | `{query}` |" for question, query in QUERIES.items()), ""]
    buckets: dict[tuple[float, ...], str] = {}
    for process, metrics in VOCABULARY.items():
        lines += [f"## {METRICS_TITLES[process]}", "", *_metric_table(metrics, buckets), ""]
    lines += [TGI_HEAD, *_metric_table(TGI_METRICS, buckets), ""]
    lines += [DASHBOARD_HEAD]
    lines += ["## Buckets", "", "Upper bounds; a value belongs to the first that it does not exceed.", ""]
    lines += [f"- {name}: {', '.join(f'{bound:.12g}' for bound in bounds)}" for bounds, name in buckets.items()]
    return "\n".join([*lines, ""])


def _metric_table(metrics: Iterable[Metric], buckets: dict[tuple[float, ...], str]) -> list[str]:
    head = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    return head + [_metric_row(metric, buckets) for metric in metrics]


def _metric_row(metric: Metric, buckets: dict[tuple[float, ...], str]) -> str:
    kind = metric.kind.value
    if metric.bounds:
        kind += f", {buckets.setdefault(metric.bounds, f'buckets {len(buckets) + 1}')}"
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {kind} | {labels} | {metric.text} |"


def _row(name: str, field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    notes = [f"also `--{alias}`" for alias in aliases_of(field)]
    if is_flag_only(field):
        notes.append(f"a flag alone: there is no {variable_of(name)}")
    if notes:
        text += f" ({'; '.join(notes)})"
    return f"| `{flag_of(name)}` | {_default(field)} | {text} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in ("", (), None):
        return ""
    if isinstance(field.default, ByteSize) and field.default:
        return f"`{field.default.human_readable(separator='').replace('.0', '')}`"
    return f"`{'off' if field.default is False else field.default}`"


PAGES = {
    ROOT / "docs" / "settings.md": settings_page,
    ROOT / "docs" / "logs.md": logs_page,
    ROOT / "docs" / "metrics.md": metrics_page,
}


def main() -> int:
    """Writes the pages, or says which ones are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write the pages")
    choice.add_argument("--check", action="store_true", help="fail if a page is out of date")
    if parser.parse_args().write:
        for path, page in PAGES.items():
            path.write_text(page())
        return 0
    stale = [path for path, page in PAGES.items() if not path.exists() or path.read_text() != page()]
    for path in stale:
        sys.stderr.write(f"{path.relative_to(ROOT)} is out of date; run make fmt\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

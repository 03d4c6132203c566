"""The Grafana dashboard asks for metrics that exist, by labels that they have, and for all that matters."""

import re

import pytest
from dashboard import NAME, load_dashboard, queries

from headrace.services.telemetry.adapter_metrics import ADAPTER_METRICS
from headrace.services.telemetry.replica_metrics import REPLICA_METRICS
from headrace.services.telemetry.request_metrics import REQUEST_METRICS
from headrace.services.telemetry.vocabulary import VOCABULARY

METRICS = {name: metric for metrics in VOCABULARY.values() for metric in metrics for name in metric.series_names}
ALL_QUERIES = [query for of_panel in queries().values() for query in of_panel]
SELECTOR = re.compile(r"(headrace_[a-z_]+)(?:\{([^}]*)\})?")
GIVEN_BY_PROMETHEUS = {"instance", "job"}
NOT_SHOWN = {
    # Distributions for a closer look, and what another panel shows already.
    "headrace_completions_total",
    "headrace_request_generated_tokens",
    "headrace_request_prompt_tokens",
    "headrace_request_token_mean_seconds",
    "headrace_steps_in_flight",
}


@pytest.mark.parametrize("query", ALL_QUERIES)
def test_a_query_asks_for_what_exists(query: str) -> None:
    selected = SELECTOR.findall(query)
    assert selected
    for name, matchers in selected:
        assert name in METRICS, name
        labels = {*METRICS[name].labels, "le"}
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers)) <= labels
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", grouped)) <= labels | GIVEN_BY_PROMETHEUS


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in load_dashboard()["panels"]:
        for target in panel.get("targets", ()):
            kept = {label for of in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in re.split(r",\s*", of)}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, target["expr"]


def test_what_a_router_tells_of_requests_replicas_and_adapters_is_shown() -> None:
    shown = {METRICS[name].name for query in ALL_QUERIES for name in NAME.findall(query)}
    told = {metric.name for metric in (*REQUEST_METRICS, *REPLICA_METRICS, *ADAPTER_METRICS)}
    assert told - shown == NOT_SHOWN


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = load_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24

"""Asks a metrics endpoint, and looks values up in what it says."""

from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """One answer of an endpoint."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]
    """By name of the series and its labels; empty labels are left out, as Prometheus does."""
    kinds: dict[str, str]
    """By name as exported, of a histogram without its endings."""

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.values}

    def get(self, name: str, **labels: str) -> float:
        """Returns a value; 0 for one that is not there."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def sum(self, name: str, **labels: str) -> float:
        """Returns the sum over the series that have these labels, whatever their others are."""
        wanted = labels.items()
        return sum(value for (found, of), value in self.values.items() if found == name and wanted <= of)

    def labels(self, name: str) -> set[str]:
        """Returns the names of the labels of a series."""
        return {label for found, of in self.values if found == name for label, _ in of}


def parse_metrics(text: str) -> Scrape:
    """Reads the text format."""
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    kinds: dict[str, str] = {}
    for family in text_string_to_metric_families(text):
        # The parser takes the ending off a counter's name.
        kinds[f"{family.name}_total" if family.type == "counter" else family.name] = family.type
        for sample in family.samples:
            labels = frozenset((label, value) for label, value in sample.labels.items() if value)
            assert (sample.name, labels) not in values, f"{sample.name} twice with {dict(labels)}"
            values[sample.name, labels] = sample.value
    return Scrape(values, kinds)


async def scrape(address: str) -> Scrape:
    """Asks the endpoint at `host:port`."""
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"http://{address}/metrics")
    answer.raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain")
    return parse_metrics(answer.text)

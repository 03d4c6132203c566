"""The queries of the Grafana dashboard."""

import json
import re
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "headrace.json"
NAME = re.compile(r"headrace_[a-z_]+")


def load_dashboard() -> Any:
    return json.loads(DASHBOARD.read_text())


def queries() -> dict[str, list[str]]:
    """Returns the queries of each panel, as Grafana would send them."""
    return {
        panel["title"]: [
            target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*") for target in panel["targets"]
        ]
        for panel in load_dashboard()["panels"]
        if panel["type"] != "row"
    }

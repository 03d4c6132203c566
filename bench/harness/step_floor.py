"""A step of the shard beside its matrix products, by the benchmark of the operators."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import machine
from headrace.services.model_source import resolve_model


async def measure_steps(model: str) -> list[dict[str, Any]]:
    """Returns the seconds of a step and of its products for several numbers of rows.

    Raises:
        RuntimeError: the benchmark failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(machine.ROOT / "bench" / "kernels.py"), f"--json={path}",
            f"--model={resolve_model(model)}", "--only-steps",
        )  # fmt: skip
        if await process.wait() != 0:
            raise RuntimeError("bench/kernels.py failed")
        rows: list[dict[str, Any]] = json.loads(path.read_text())["steps"]
        return rows

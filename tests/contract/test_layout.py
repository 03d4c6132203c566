"""The source roots make one importable package, and no part drags in what it must do without."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = {
    "headrace.contract": "proto/python",
    "headrace.v1": "proto/python",
    "headrace.internal.v1": "proto/python",
    "headrace.router": "router",
    "headrace.shard": "shard",
    "headrace.kernels": "kernels",
    "headrace.services": "services",
    "headrace.client": "clients/python",
}
ROOTS = sorted(set(PORTIONS.values()))


@pytest.mark.parametrize("root", ROOTS)
def test_no_root_owns_the_namespace(root: str) -> None:
    """One `headrace/__init__.py` would make every other root vanish."""
    assert not (ROOT / root / "headrace" / "__init__.py").exists()


def test_every_root_is_known_to_this_test() -> None:
    found = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/headrace")}
    found |= {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/python/headrace")}
    assert found - {"proto"} == set(ROOTS)  # proto/headrace holds the .proto files


@pytest.mark.parametrize(("name", "root"), PORTIONS.items())
def test_every_portion_imports_from_its_root_and_is_typed(name: str, root: str) -> None:
    module = importlib.import_module(name)
    folder = ROOT / root / Path(*name.split("."))
    assert module.__file__ is not None
    assert Path(module.__file__).parent == folder
    assert any((parent / "py.typed").exists() for parent in (folder, folder.parent))


@pytest.mark.parametrize(
    ("name", "unwanted"),
    [
        ("headrace.client", {"torch", "numpy", "transformers", "structlog", "pydantic", "uvloop", "opentelemetry"}),
        ("headrace.router.pipeline", {"torch", "grpc", "google.protobuf", "transformers"}),
        ("headrace.shard.worker", {"grpc", "google.protobuf", "transformers", "tokenizers"}),
        ("headrace.services.router_process", {"torch", "transformers", "opentelemetry"}),
        ("headrace.services.shard_process", {"transformers", "opentelemetry"}),
        ("headrace.services.cli", {"torch", "transformers"}),
        (
            "headrace.services.rest.process",
            {"torch", "transformers", "tokenizers", "numpy", "jinja2", "gguf", "opentelemetry"},
        ),
    ],
)
def test_importing_does_not_drag_in(name: str, unwanted: set[str]) -> None:
    """Import rules see what our files say; this sees what a process ends up with."""
    script = f"import sys, {name}; print(*sorted(sys.modules.keys() & {unwanted!r}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() == []

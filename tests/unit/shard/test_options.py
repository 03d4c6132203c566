"""Options by name, and engines by name."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from headrace.contract.errors import StartupError
from headrace.shard.options import parse_options
from headrace.shard.registry import create_engine, engine_names


@dataclass(frozen=True, kw_only=True)
class Example:
    """Options of every type."""

    path: str
    size: int = 1
    time_s: float = 0.5
    is_strict: bool = False


def test_values_keep_their_types_and_text_gets_one() -> None:
    expected = Example(path="7", size=3, time_s=2.0, is_strict=True)
    assert parse_options(Example, {"path": "7", "size": 3, "time_s": 2, "is_strict": True}) == expected
    assert parse_options(Example, {"path": "7", "size": "3", "time_s": "2", "is_strict": "True"}) == expected
    assert parse_options(Example, {"path": "x"}) == Example(path="x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'path' is missing"),
        ({"path": "x", "sise": 1}, "'sise'; there are: is_strict, path, size, time_s"),
        ({"path": 7}, "path: 7 is not of type str"),
        ({"path": "x", "size": "many"}, "size: 'many' is not of type int"),
        ({"path": "x", "size": True}, "size: True is not of type int"),
        ({"path": "x", "size": 1.0}, "size: 1.0 is not of type int"),
        ({"path": "x", "is_strict": 1}, "is_strict: 1 is not of type bool"),
        ({"path": "x", "is_strict": "maybe"}, "is_strict: 'maybe' is not of type bool"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        parse_options(Example, values)


def test_an_unknown_engine_is_named() -> None:
    assert engine_names() == ("fake", "native")
    with pytest.raises(StartupError, match="'vapor'; there are: fake, native"):
        create_engine("vapor", {})


def test_progress_is_told() -> None:
    told: list[str] = []
    create_engine("fake", {}, told.append)
    assert told


def test_a_missing_package_is_named() -> None:
    """As on a machine where only the router's extra is installed."""
    script = """
import sys
from headrace.contract.errors import StartupError
from headrace.shard.registry import create_engine

class WithoutTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, WithoutTorch())
try:
    create_engine("native", {"model": "x"})
except StartupError as error:
    print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "engine 'native' needs the package 'torch': install headrace[shard]"

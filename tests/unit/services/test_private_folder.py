"""A folder of sockets outlives its process only until the next one starts."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.services.private_folder import private_folder

_PROGRAM = """
import sys
from headrace.services.private_folder import private_folder
with private_folder() as folder:
    (folder / "shard-0.sock").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_at_the_end(parent: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == parent
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "router.sock").touch()
    assert list(parent.iterdir()) == []


def test_one_of_a_killed_process_is_removed_and_one_of_a_living_is_not(parent: Path) -> None:
    """Nor is one that somebody else made."""
    (parent / "headrace-notes").mkdir()
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        with private_folder() as ours:
            assert {*parent.iterdir()} == {theirs, ours, parent / "headrace-notes"}
        process.kill()
    assert (theirs / "shard-0.sock").exists()
    with private_folder() as ours:
        assert {*parent.iterdir()} == {ours, parent / "headrace-notes"}


@pytest.mark.parametrize(
    ("owner", "name"), [(tempfile, "mkdtemp"), (os, "open"), (fcntl, "flock"), (Path, "rename"), (Path, "glob")]
)
def test_another_that_starts_at_any_moment_of_the_start_takes_nothing(
    parent: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Another server comes and goes before and after each thing that a start does to the file system."""
    original: Callable[..., Any] = getattr(owner, name)
    start_count = 0

    def start_another() -> None:
        nonlocal start_count
        monkeypatch.setattr(owner, name, original)
        with private_folder():
            start_count += 1
        monkeypatch.setattr(owner, name, beset)

    def beset(*arguments: Any, **options: Any) -> Any:
        start_another()
        result = original(*arguments, **options)
        start_another()
        return result

    monkeypatch.setattr(owner, name, beset)
    with private_folder() as ours:
        monkeypatch.setattr(owner, name, original)
        assert start_count >= 2
        assert (ours / "lock").exists()
        assert list(parent.iterdir()) == [ours]

"""A folder of sockets outlives its process only until the next one starts."""

import subprocess
import sys
import tempfile
from pathlib import Path

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
    monkeypatch.setattr(tempfile, "tempdir", None)
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

"""A folder for the sockets of one `headrace serve`, which the next one removes if this one could not."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PREFIX: Final = "headrace-"
_UNFINISHED_PREFIX: Final = ".headrace-"
"""Of a folder that has no lock yet, or none that is held: no sweep looks at it."""
_LOCK_NAME: Final = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Makes a folder that only this user may enter (mode 0700), and removes it at the end.

    Before that it removes those of processes that were killed. A lock that the
    kernel drops when its holder dies tells them apart, where a process id might
    have passed to somebody else, or be one of another container. The folder gets
    the name by which others find it only when its lock is held, so none of them
    ever takes it for one that was left. Who is killed before that leaves a folder
    that holds nothing.
    """
    parent = Path(tempfile.gettempdir())
    _sweep(parent)
    with contextlib.ExitStack() as undo:
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED_PREFIX, dir=parent))
        undo.callback(shutil.rmtree, unfinished, ignore_errors=True)
        lock = os.open(unfinished / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A name as random as the first; if it were taken, this would fail and replace nothing.
        folder = parent / unfinished.name.removeprefix(".")
        unfinished.rename(folder)
        # Before the lock is given up, or another's sweep would be at it as well.
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # What is not ours, or goes while we look, is left alone.
        with contextlib.suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)

"""Files that are read again after somebody has replaced them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")

_Signature = tuple[tuple[int, int, int], ...]


class WatchedFiles:
    """Notices by their metadata that files have changed, when and only when it is asked.

    So there is no thread and no timer, and the answer is never older than the
    question. A file is replaced by renaming a new one over it, or by the switch
    of a symbolic link, as Kubernetes does with secrets.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._seen: _Signature | None = None

    def load_if_changed(self, load: Callable[[], Loaded]) -> Loaded | None:
        """Returns what `load` makes of the files, or None if they are as they were when it last ran.

        None as well while they are being replaced: files of different
        generations do not belong together, and the next call finds them whole.

        Raises what `load` raises, once: it is not called again for the same files.
        """
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        loaded = load()
        if self._signature() == signature:
            return loaded
        self._seen = None
        return None

    def _signature(self) -> _Signature:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int]:
    """Returns what changes with a file; for one that is not there, what no file has, so that `load` finds out why."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)

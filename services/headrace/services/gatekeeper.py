"""Finds out who calls, and whether the method is open to them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from headrace.contract.clock import Clock
from headrace.contract.errors import StartupError, Unauthenticated
from headrace.services.access_list import AccessList
from headrace.services.access_rules import check_access
from headrace.services.caller import STRANGER, Caller
from headrace.services.log import Event, bind_caller, logger
from headrace.services.watched_files import WatchedFiles

LOOK_INTERVAL_S = 1.0
"""How long a change of the file may go unnoticed while calls come."""

AUTHORIZATION = "authorization"
_SCHEME = "bearer "


class Gatekeeper:
    """Asks callers for keys, by an operator's file that may be replaced at any time. Use on one event loop."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Reads the file.

        Raises:
            StartupError: it cannot be read or is wrong.
        """
        self._path = path
        self._clock = clock
        self._watched = WatchedFiles([path])
        self._listeners: list[Callable[[AccessList], None]] = []
        try:
            access = self._watched.load_if_changed(self._load)
        except (OSError, ValueError) as error:
            raise StartupError(f"cannot use the access file {path}: {_reason(error)}") from error
        if access is None:
            raise StartupError(f"the access file {path} is being replaced; start again")
        self._access = access
        self._looked_s = clock.now()

    def follow(self, listener: Callable[[AccessList], None]) -> None:
        """Calls a function with the list as it is, and again with every later one."""
        self._listeners.append(listener)
        listener(self._access)

    def admit(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Returns who calls a method, given by its full name, with these headers.

        Raises:
            Unauthenticated: a key is needed, and there is none that is known.
            Forbidden: the key does not open this method.
        """
        self._look()
        caller = self._identify(metadata)
        # Before the check: who tries what is not open to him is worth knowing.
        bind_caller(caller.key_name, caller.tenant)
        check_access(method, caller)
        return caller

    def _identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        given = [value for name, value in metadata if name == AUTHORIZATION]
        if not given:
            return STRANGER
        if len(given) > 1:
            raise Unauthenticated("there are several `authorization` headers; send one")
        [value] = given
        if not isinstance(value, str) or not value.lower().startswith(_SCHEME):
            raise Unauthenticated("the `authorization` header must be: Bearer KEY")
        caller = self._access.find(value[len(_SCHEME) :].strip())
        if caller is None:
            raise Unauthenticated("the key is not known here")
        return caller

    def _look(self) -> None:
        now_s = self._clock.now()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return
        self._looked_s = now_s
        try:
            access = self._watched.load_if_changed(self._load)
        except (OSError, ValueError) as error:
            logger().error(Event.ACCESS_REFUSED, path=str(self._path), detail=_reason(error))
            return
        if access is not None:
            self._access = access
            logger().info(Event.ACCESS_RENEWED, path=str(self._path))
            for listener in self._listeners:
                listener(access)

    def _load(self) -> AccessList:
        return AccessList.parse(self._path.read_text(encoding="utf-8"))


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)

"""Where a server listens and is reached: `host:port` or `unix:PATH`."""

import ipaddress
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from headrace.contract.errors import StartupError

_UNIX_PATH_LIMIT_BYTES = 107
"""What fits into a Linux `sockaddr_un`."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port."""

    host: str
    """A name or an IP address, without brackets."""
    port: int
    """0 lets the system choose when listening."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return True


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Returns the address that a text names.

    Raises:
        ValueError: it names none; the message says what is expected.
    """
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.name:
            raise ValueError(f"{text!r} has no path; write unix:/run/headrace/shard.sock")
        if len(bytes(path.absolute())) > _UNIX_PATH_LIMIT_BYTES:
            raise ValueError(f"{text!r}: the path of a socket has at most {_UNIX_PATH_LIMIT_BYTES} bytes")
        return UnixAddress(path.absolute())
    host, separator, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_bracketed else host
    if not separator or not host or (":" in host and not is_bracketed):
        raise ValueError(f"{text!r} is not an address; write host:port, [ipv6]:port or unix:PATH")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r}: the port must be a number in [0, 65535]")
    return TcpAddress(host, int(port))


def clear_for_listening(address: Address) -> None:
    """Removes the socket file that a server which died has left behind.

    Raises:
        StartupError: something listens at a unix path, or it is no socket.
    """
    if not isinstance(address, UnixAddress):
        return
    try:
        mode = address.path.lstat().st_mode
    except FileNotFoundError:
        if not address.path.parent.is_dir():
            raise StartupError(f"cannot listen on {address}: there is no folder {address.path.parent}") from None
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"cannot listen on {address}: the file is there and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(address.path))
        except ConnectionRefusedError:
            address.path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise StartupError(f"cannot listen on {address}: {error.strerror}") from error
    raise StartupError(f"cannot listen on {address}: another process listens there")


def explain_bind_failure(address: Address) -> str:
    """Returns why an address cannot be bound, by trying it, since gRPC does not say."""
    family = socket.AF_INET6 if isinstance(address, TcpAddress) and ":" in address.host else socket.AF_INET
    try:
        if isinstance(address, UnixAddress):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.bind(str(address.path))
            address.path.unlink(missing_ok=True)
        else:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address.host, address.port))
    except OSError as error:
        return error.strerror or str(error)
    return "the address cannot be bound"

"""How a process protects the connections that it makes: which servers it believes, and what it shows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from headrace.contract.errors import StartupError
from headrace.services.address import Address, TcpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTlsFiles:
    """Files in PEM."""

    ca: Path
    """Roots of the servers' certificates."""
    certificate: Path | None = None
    """What this process shows, followed by the certificates between it and its root; None shows nothing."""
    key: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSecurity:
    """What is true of all connections that a process makes to one kind of server.

    With TLS every TCP address is reached by it, loopback too. Unix sockets never
    are: whoever may open one is decided by the file system.
    """

    tls: ChannelTlsFiles | None = None
    allows_remote_plaintext: bool = False
    hint: str = ""
    """The setting that turns TLS on."""

    @classmethod
    def of(cls, *, ca: str, certificate: str, key: str, allows_remote_plaintext: bool, hint: str) -> "ChannelSecurity":
        """Returns what settings say."""
        tls = None
        if ca:
            shown = {"certificate": Path(certificate), "key": Path(key)} if certificate else {}
            tls = ChannelTlsFiles(ca=Path(ca), **shown)
        return cls(tls=tls, allows_remote_plaintext=allows_remote_plaintext, hint=hint)

    def check(self, addresses: Iterable[Address]) -> None:
        """Checks that nothing would go over a network in plain text.

        Raises:
            StartupError: it would.
        """
        for address in addresses:
            if not (address.is_local or self.tls or self.allows_remote_plaintext):
                raise StartupError(
                    f"refusing to connect to {address}: it is on another machine and the connection is not encrypted; "
                    f"set {self.hint}, or accept that with --insecure"
                )

    def credentials(self, addresses: Iterable[Address]) -> grpc.ChannelCredentials | None:
        """Returns what to connect to these addresses with, from the files as they are now; None for plain text.

        Raises:
            StartupError: a file cannot be read, or a connection would go over a network in plain text.
        """
        addresses = tuple(addresses)
        self.check(addresses)
        if self.tls is None or not any(isinstance(address, TcpAddress) for address in addresses):
            return None
        try:
            ca, *shown = [path.read_bytes() for path in self.tls.paths]
        except OSError as error:
            raise StartupError(f"cannot read {error.filename}: {error.strerror}") from error
        if not shown:
            return grpc.ssl_channel_credentials(ca)
        certificate, key = shown
        return grpc.ssl_channel_credentials(ca, private_key=key, certificate_chain=certificate)

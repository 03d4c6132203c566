"""TLS to a server, with a certificate of the client's own where the server asks for one."""

import os
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM. They are read when a client is made; one that is to show a newer certificate is made anew."""

    ca_file: str | os.PathLike[str] | None = None
    """Roots of the servers' certificates; None believes the public ones that come with gRPC."""
    certificate_file: str | os.PathLike[str] | None = None
    """What the client shows, followed by the certificates between it and its root."""
    key_file: str | os.PathLike[str] | None = None
    """Private key of that certificate, not encrypted."""
    server_name: str = ""
    """Name that the server's certificate has to have, where it is not the one in the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns what gRPC takes.

        Raises:
            OSError: a file cannot be read.
            ValueError: only one of certificate and key is given.
        """
        if (self.certificate_file is None) is not (self.key_file is None):
            raise ValueError("a certificate_file and its key_file belong together, and only one is given")
        return grpc.ssl_channel_credentials(
            _read(self.ca_file), private_key=_read(self.key_file), certificate_chain=_read(self.certificate_file)
        )

    def channel_options(self) -> tuple[tuple[str, str | int], ...]:
        """Returns the arguments of gRPC's core that go with it."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()

"""The certificate that a server shows, and whose certificates it asks for, renewed without a restart."""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from headrace.contract.errors import StartupError
from headrace.services.log import Event, logger
from headrace.services.watched_files import WatchedFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTlsFiles:
    """Files in PEM."""

    certificate: Path
    """The server's certificate, followed by those between it and its root."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Roots of the certificates that clients must show; None asks for none."""

    @classmethod
    def of(cls, *, certificate: str, key: str, client_ca: str) -> "ServerTlsFiles | None":
        """Returns the files that settings name; None if they name none."""
        if not certificate:
            return None
        return cls(certificate=Path(certificate), key=Path(key), client_ca=Path(client_ca) if client_ca else None)


class ServerTls:
    """Gives new connections the newest certificate; those that are open keep theirs, and so do their streams.

    The files are looked at when a connection is made. Files that do not fit
    together are reported and the last good ones stay in use. Threads may call it
    together: gRPC asks from its own.
    """

    def __init__(self, files: ServerTlsFiles) -> None:
        """Reads the files.

        Raises:
            StartupError: a file cannot be read, or certificate and key do not fit together.
        """
        self.asks_for_certificates = files.client_ca is not None
        """Whether a client must show a certificate."""
        self._files = files
        paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
        self._watched = WatchedFiles(paths)
        self._lock = threading.Lock()
        try:
            loaded = self._watched.load_if_changed(self._load)
        except (OSError, ValueError) as error:
            raise StartupError(_explain(files, error)) from error
        if loaded is None:
            raise StartupError(f"{files.certificate} and its key are being replaced; start again")
        self._configuration, self._context = loaded

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Returns what a gRPC server listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._renewed,  # type: ignore[arg-type]  # gRPC takes None, too, and keeps what it has
            require_client_authentication=self.asks_for_certificates,
        )

    def ssl_context(self) -> ssl.SSLContext:
        """Returns what an HTTP server listens with."""
        context = self._make_context()
        # Called in each handshake, whether or not the client names a host.
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self._renew()
        connection.context = self._context

    def _renewed(self) -> "grpc.ServerCertificateConfiguration | None":
        """Returns the newest certificate to gRPC; None says that it has it."""
        return self._configuration if self._renew() else None

    def _renew(self) -> bool:
        with self._lock:
            try:
                loaded = self._watched.load_if_changed(self._load)
            except (OSError, ValueError) as error:
                path = str(self._files.certificate)
                logger().error(Event.CERTIFICATE_REFUSED, path=path, detail=_explain(self._files, error))
                return False
            if loaded is None:
                return False
            self._configuration, self._context = loaded
        logger().info(Event.CERTIFICATE_RENEWED, path=str(self._files.certificate))
        return True

    def _load(self) -> "tuple[grpc.ServerCertificateConfiguration, ssl.SSLContext]":
        files = self._files
        roots = files.client_ca.read_bytes() if files.client_ca else None
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        # Also checks the files, which gRPC itself does in the handshake of the first client.
        context = self._make_context()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots), context

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._files.certificate, self._files.key, password=_no_password)
        if self._files.client_ca is not None:
            context.load_verify_locations(self._files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session would not show its certificate again, though the roots may have changed.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context


def _no_password() -> str:
    """Keeps OpenSSL from asking for one at the terminal."""
    raise ValueError("the private key is encrypted; store it without a password, readable by this process alone")


def _explain(files: ServerTlsFiles, error: OSError | ValueError) -> str:
    """Returns what is wrong; `ssl.SSLError` is an OSError without a file's name."""
    if isinstance(error, OSError) and error.filename:
        return f"cannot read {error.filename}: {error.strerror}"
    names = " and ".join(str(path) for path in (files.certificate, files.key, files.client_ca) if path)
    return f"{names} cannot be used for TLS: {error}"

"""What may be offered and sent to other machines: nothing without encryption, unless the operator says so."""

from urllib.parse import urlsplit

from headrace.contract.errors import StartupError
from headrace.services.address import Address, TcpAddress
from headrace.services.server_tls import ServerTls


def check_listener(address: Address, tls: ServerTls | None, *, allows_remote_plaintext: bool) -> None:
    """Checks that an address may be listened on.

    Raises:
        StartupError: other machines reach it and the connection would not be encrypted.
    """
    if not (address.is_local or allows_remote_plaintext or tls is not None):
        raise StartupError(
            f"refusing to listen on {address}: other machines reach it and the connection is not encrypted; "
            "listen on 127.0.0.1 or a unix socket, set --tls-certificate-file and --tls-key-file, "
            "or accept that with --insecure"
        )


def check_shard_listener(address: Address, tls: ServerTls | None, *, allows_remote_plaintext: bool) -> None:
    """Checks that a shard may listen on an address. It knows no keys: whoever reaches it can use the model.

    Raises:
        StartupError: other machines reach it and need no certificate, or the connection would not be encrypted.
    """
    check_listener(address, tls, allows_remote_plaintext=allows_remote_plaintext)
    asks = tls is not None and tls.asks_for_certificates
    if not (address.is_local or allows_remote_plaintext or asks):
        raise StartupError(
            f"refusing to listen on {address}: other machines reach it, and any of them could use the model past the "
            "router; set --tls-client-ca-file to the root of the router's certificate, or accept that with --insecure"
        )


def check_trace_endpoint(endpoint: str, *, allows_remote_plaintext: bool) -> None:
    """Checks that traces may be sent to an OTLP endpoint: they tell of models, tenants and paths.

    Raises:
        StartupError: it is on another machine and the connection would not be encrypted.
    """
    parts = urlsplit(endpoint)
    is_local = TcpAddress(parts.hostname or "", 0).is_local
    if not (parts.scheme == "https" or is_local or allows_remote_plaintext):
        raise StartupError(
            f"refusing to send traces to {endpoint}: it is on another machine and the connection is not encrypted; "
            "write https:// in --otlp-endpoint, or accept that with --insecure"
        )

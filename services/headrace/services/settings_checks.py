"""What settings may hold: the types of their fields, and what must be true of several of them together."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from headrace.contract.adapter import check_adapter_name
from headrace.contract.errors import InvalidRequest
from headrace.services.address import Address, TcpAddress, parse_address


def _is_address(text: str) -> str:
    parse_address(text)
    return text


def _is_tcp_address(text: str) -> str:
    if text and not isinstance(parse_address(text), TcpAddress):
        raise ValueError(f"{text!r} is no host:port")
    return text


def _on_loopback(text: str) -> str:
    """Returns the address of a port alone."""
    return f"127.0.0.1:{text}" if text.isascii() and text.isdigit() else text


def is_otlp_endpoint(text: str) -> str:
    """Returns the text if it is where spans can be sent, or empty."""
    if text and not re.fullmatch(r"https?://[^/]+/?", text):
        raise ValueError(f"{text!r} is no http://host:port")
    return text


def split_at_commas(items: object) -> object:
    """Cuts what was given at once, as TGI's launcher has it, at its commas."""
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return items
    return tuple(part for item in items for part in item.split(",") if part)


AddressText = Annotated[str, AfterValidator(_is_address)]
TcpAddressText = Annotated[str, AfterValidator(_on_loopback), AfterValidator(_is_tcp_address)]


def join_listen_address(listen: str, hostname: str | None, port: int | None) -> Address:
    """Returns where to listen: an address, with parts of it replaced."""
    address = parse_address(listen)
    if not isinstance(address, TcpAddress):
        return address
    return TcpAddress(address.host if hostname is None else hostname, address.port if port is None else port)


def check_adapters(items: tuple[str, ...]) -> None:
    """Checks that adapters have sources, and names of their own that requests can have."""
    seen = set()
    for item in items:
        name, _, source = item.partition("=")
        if not source:
            raise ValueError(f"adapter {item!r} is not NAME=SOURCE")
        if name in seen:
            raise ValueError(f"two adapters are called {name!r}")
        try:
            check_adapter_name(name)
        except InvalidRequest as error:
            raise ValueError(f"adapter {item!r}: {error}") from error
        seen.add(name)


def check_pair(settings: BaseModel, certificate: str, key: str, *, needed: str = "") -> None:
    """Checks that a certificate is given with its key, and what both need."""
    given = [bool(getattr(settings, name)) for name in (certificate, key)]
    if any(given) and not all(given):
        raise ValueError(f"{certificate} and {key} belong together, and only one is given")
    if needed and any(given) and not getattr(settings, needed):
        raise ValueError(f"{certificate} needs a {needed}: without one nothing is encrypted")


def check_listen_parts(listen: str, hostname: str | None, port: int | None) -> None:
    """Checks that an address has the parts that are to be replaced."""
    has_part = hostname is not None or port is not None
    if has_part and not isinstance(parse_address(listen), TcpAddress):
        raise ValueError(f"a hostname or a port has no place in the address {listen}")

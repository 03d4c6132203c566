"""Addresses are read strictly, and a socket file is removed only when nobody listens."""

import socket
from pathlib import Path

import pytest

from headrace.contract.errors import StartupError
from headrace.services.address import (
    TcpAddress,
    UnixAddress,
    clear_for_listening,
    explain_bind_failure,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:50051", TcpAddress("127.0.0.1", 50051)),
        ("router.svc.cluster.local:0", TcpAddress("router.svc.cluster.local", 0)),
        ("[::1]:9", TcpAddress("::1", 9)),
        ("unix:/run/a.sock", UnixAddress(Path("/run/a.sock"))),
    ],
)
def test_what_is_an_address(text: str, expected: object) -> None:
    address = parse_address(text)
    assert address == expected
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:x",
        "host:-1",
        "host:65536",
        "::1:9",
        "unix:",
        "unix:/",
        f"unix:/{'x' * 120}",
        "h:\u0661",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/a", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.com:1", False),
    ],
)
def test_who_reaches_it(text: str, is_local: bool) -> None:
    assert parse_address(text).is_local is is_local


def test_a_stale_socket_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    clear_for_listening(UnixAddress(path))
    assert not path.exists()
    clear_for_listening(UnixAddress(path))


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "used.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(StartupError, match="another process listens"):
            clear_for_listening(UnixAddress(path))
    assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(StartupError, match="not a socket"):
        clear_for_listening(UnixAddress(path))
    assert path.read_text() == "data"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=str(tmp_path / "none")):
        clear_for_listening(UnixAddress(tmp_path / "none" / "a.sock"))


def test_a_taken_port_is_explained() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in explain_bind_failure(TcpAddress("127.0.0.1", taken.getsockname()[1]))


def test_a_foreign_host_is_explained() -> None:
    assert "assign" in explain_bind_failure(TcpAddress("192.0.2.1", 0))

"""What comes beside bodies is counted against a limit, however it is cut into pieces."""

import pytest

from headrace.services.rest.head_check import HeadRefused, check_head
from headrace.services.rest.wire_count import HEAD_LIMIT_BYTES, WireCount

HOST = (b"host", b"x")


def receive(count: WireCount, size_bytes: int) -> bool:
    """Has a piece come in which the parser finds nothing new."""
    count.begin_piece()
    return count.end_piece(size_bytes)


def with_body() -> WireCount:
    count = WireCount()
    count.begin_piece()
    count.begin_head()
    count.begin_body()
    assert not count.end_piece(HEAD_LIMIT_BYTES * 2)
    return count


def test_a_head_may_come_in_pieces_up_to_the_limit() -> None:
    count = WireCount()
    count.begin_piece()
    count.begin_head()
    assert not count.end_piece(HEAD_LIMIT_BYTES * 2)
    assert not receive(count, HEAD_LIMIT_BYTES)
    assert receive(count, 1)


def test_the_next_head_is_counted_anew() -> None:
    count = with_body()
    assert not receive(count, HEAD_LIMIT_BYTES)
    count.end_body()
    assert not receive(count, HEAD_LIMIT_BYTES)
    count.begin_piece()
    count.begin_head()
    assert not count.end_piece(1)
    assert not receive(count, HEAD_LIMIT_BYTES)


def test_a_body_pays_for_its_frame() -> None:
    count = with_body()
    for _ in range(100):
        count.begin_piece()
        count.add_body(HEAD_LIMIT_BYTES // 6)
        assert not count.end_piece(HEAD_LIMIT_BYTES)


def test_what_frames_no_body_is_bounded() -> None:
    count = with_body()
    count.add_body(10**9)
    sizes = [receive(count, HEAD_LIMIT_BYTES) for _ in range(20)]
    assert sizes.index(True) == 9


GOOD = [
    [HOST],
    [(b"host", b"")],
    [(b"host", b"localhost:8080")],
    [(b"host", b"[::1]:8080")],
    [(b"host", b"[fe80::1%25eth0]")],
    [(b"host", b"my_service.default.svc.cluster.local")],
    [(b"host", b"%2Frun%2Fheadrace.sock")],
]
BAD = [
    [],
    [HOST, HOST],
    [HOST, (b"host", b"y")],
    [(b"host", b"x y")],
    [(b"host", b"x/y")],
    [(b"host", b"user@x")],
    [(b"host", b"x:80:80")],
    [(b"host", b"x:http")],
    [(b"host", b"x\xff")],
    [(b"host", b"http://x")],
]


@pytest.mark.parametrize("headers", GOOD)
def test_a_host_is_named(headers: list[tuple[bytes, bytes]]) -> None:
    check_head(b"/", headers, "1.1")


@pytest.mark.parametrize("headers", BAD)
def test_no_host_or_two_or_none_that_can_be_one(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(HeadRefused) as caught:
        check_head(b"/", headers, "1.1")
    assert caught.value.answer.startswith(b"HTTP/1.1 400 ")


def test_an_old_caller_need_not_name_a_host() -> None:
    check_head(b"/", [], "1.0")
    with pytest.raises(HeadRefused):
        check_head(b"/", [HOST, HOST], "1.0")


def test_a_head_is_measured_as_it_came() -> None:
    room = HEAD_LIMIT_BYTES - len(b"/") - len(b"hostx") - len(b"x-a") - 8
    check_head(b"/", [HOST, (b"x-a", b"a" * room)], "1.1")
    with pytest.raises(HeadRefused) as caught:
        check_head(b"/", [HOST, (b"x-a", b"a" * (room + 1))], "1.1")
    assert caught.value.answer.startswith(b"HTTP/1.1 431 ")

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


def test_a_head_is_measured_as_it_came() -> None:
    room = HEAD_LIMIT_BYTES - len(b"/") - len(b"hostx") - len(b"x-a") - 8
    check_head(b"/", [HOST, (b"x-a", b"a" * room)])
    with pytest.raises(HeadRefused) as caught:
        check_head(b"/", [HOST, (b"x-a", b"a" * (room + 1))])
    assert caught.value.answer.startswith(b"HTTP/1.1 431 ")

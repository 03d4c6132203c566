"""Requests whose head says two things, or whose bytes two servers could read in two ways, and callers of HTTP/1.0."""

import json
from typing import Any

import pytest

BODY = b'{"prompt":"x","max_tokens":2}'
STREAM = b'{"prompt":"x","max_tokens":2,"stream":true}'
PATH = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
PING = b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"


def with_headers(*lines: bytes, body: bytes = BODY) -> bytes:
    return PATH + b"".join(line + b"\r\n" for line in (*lines, b"content-length: %d" % len(body))) + b"\r\n" + body


CLOSE = b"connection: close"

TWICE = [
    (b"authorization: Bearer a", b"authorization: Bearer b"),
    (b"x-api-key: a", b"x-api-key: a"),
    (b"x-request-id: a", b"x-request-id: b"),
    (b"x-request-timeout-s: 9", b"x-request-timeout-s: 0.001"),
    (b"content-type: application/json", b"content-type: text/plain"),
    (b"content-encoding: identity", b"content-encoding: gzip"),
    (b"traceparent: a", b"traceparent: b"),
]


@pytest.mark.parametrize("lines", TWICE, ids=lambda lines: lines[0].partition(b":")[0].decode())
async def test_of_two_headers_none_wins(rest: Any, lines: tuple[bytes, bytes]) -> None:
    answer = await rest.raw(with_headers(*lines, CLOSE))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (error["param"], error["message"].endswith("must be given once")) == (
        lines[0].partition(b":")[0].decode(),
        True,
    )


HOSTS = [
    b"host: x\r\nhost: x\r\n",
    b"host: x\r\nHost: y\r\n",
    b"host: x y\r\n",
    b"host: x/y\r\n",
    b"",
]


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["plain", "offer"])
async def test_a_request_names_one_host(rest: Any, hosts: bytes, offer: bytes) -> None:
    """And nothing that follows it is taken for a request."""
    start = b"POST /v1/completions HTTP/1.1\r\n" + hosts + offer
    answer = await rest.raw(start + b"content-length: %d\r\n\r\n" % len(BODY) + BODY + PING)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"one header Host" in answer
    await rest.idle()


FOLLOWERS = [b"nonsense\r\n\r\n", b"GET /ping HTTP/1.1\r\n\r\n", b"GET /ping HTTP/1.1\r\nhost: x\r\nx-a : b\r\n\r\n"]


@pytest.mark.parametrize("follower", FOLLOWERS, ids=["nonsense", "no host", "wrong header"])
async def test_what_follows_a_request_is_not_refused_in_its_answer(rest: Any, follower: bytes) -> None:
    """The caller would take the refusal for the answer to the first, or for a part of it."""
    answer = await rest.raw(with_headers(body=STREAM) + follower)
    assert b"HTTP/1.1 400 " not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1
    await rest.idle()


async def test_an_old_caller_may_name_none(rest: Any) -> None:
    answer = await rest.raw(b"GET /ping HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer


async def test_the_list_of_a_trace_may_come_in_several_headers(rest: Any) -> None:
    assert b" 200 " in await rest.raw(with_headers(b"tracestate: a=1", b"tracestate: b=2", CLOSE))


WRONG: list[tuple[bytes, bytes, bytes]] = [
    (b"authorization: a\tb", b"400", b"authorization: must hold printable ASCII"),
    (b"authorization: Bearer \xc3\xbc", b"400", b"authorization: must hold printable ASCII"),
    (b"x-api-key: a\tb", b"400", b"x-api-key: must hold printable ASCII"),
    (b"authorization: " + b"a" * 9000, b"400", b"authorization: must have at most 8192 bytes, has 9000"),
    (b"x-api-key: " + b"a" * 20_000, b"400", b"x-api-key: must have at most 8192 bytes, has 20000"),
    (b"x-request-timeout-s: 1_0", b"400", b"x-request-timeout-s: must be a positive number of seconds"),
    (b"x-request-timeout-s: nan", b"400", b"x-request-timeout-s: must be a positive number of seconds"),
    # Traces are never the reason that a request fails.
    (b"tracestate: " + b"a" * 17_000, b"200", b""),
    (b"traceparent: a\tb", b"200", b""),
    (b"traceparent: " + b"0" * 17_000, b"200", b""),
]


@pytest.mark.parametrize(("line", "status", "message"), WRONG, ids=lambda value: value[:30].decode("latin-1"))
async def test_a_header_that_cannot_go_on_is_named(rest: Any, line: bytes, status: bytes, message: bytes) -> None:
    answer = await rest.raw(with_headers(line, CLOSE))
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert message in answer


async def test_a_body_that_is_encoded_on_its_way_is_refused(rest: Any) -> None:
    head = PATH + b"connection: close\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
    answer = await rest.raw(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert answer.startswith(b"HTTP/1.1 415 "), answer


CHUNKED = PATH + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


async def test_trailers_are_no_headers(rest: Any) -> None:
    """A proxy that checks headers has not seen them."""
    answer = await rest.raw(CHUNKED + b"x-request-id: trailer\r\nx-request-timeout-s: 0\r\n\r\n")
    assert b" 200 " in answer
    assert b"trailer" not in answer


FLOODS = [
    CHUNKED + b"x-a: ",
    PATH + b"transfer-encoding: chunked\r\n\r\n1;",
]


@pytest.mark.parametrize("start", FLOODS, ids=["trailers", "extensions"])
async def test_what_frames_a_body_is_bounded(rest: Any, start: bytes) -> None:
    answer = await rest.raw(start, *[b"a" * 60_000] * 20)
    assert answer == b"reset" or b"HTTP/1.1 431 " in answer or b"HTTP/1.1 200 " in answer, answer[:100]
    await rest.idle()


async def test_small_chunks_are_no_flood(rest: Any) -> None:
    text = b'{"max_tokens":1,"truncate_prompt_tokens":5,"prompt":"' + b"x " * 40_000 + b'"}'
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    answer = await rest.raw(PATH + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n", pieces)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]


async def test_an_old_caller_gets_a_stream_that_ends_with_the_connection(rest: Any) -> None:
    """HTTP/1.0 knows no chunks; proxies still speak it unless they are told otherwise."""
    start = PATH.replace(b"1.1", b"1.0")
    answer = await rest.raw(start + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM)
    head, _, events = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")
    assert all(line.startswith(b"data: ") for line in events.split(b"\n\n")[:-1])
    whole = await rest.raw(start + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["object"] == "text_completion"


async def test_what_came_before_a_head_in_its_first_piece_is_not_counted(rest: Any) -> None:
    first = with_headers(body=b'{"max_tokens":1,"truncate_prompt_tokens":5,"prompt":"' + b"x " * 20_000 + b'"}')
    last = with_headers(CLOSE)
    answer = await rest.raw(first[:20], first[20:] + last[:20], last[20:])
    assert answer.count(b"HTTP/1.1 200 ") == 2, answer[:300]

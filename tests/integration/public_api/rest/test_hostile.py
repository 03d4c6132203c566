"""Bodies, headers and connections as nobody should send them: refused, and nothing is left behind."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

# Whoever takes the bound away waits for no more than this.
HEADERS = {"content-type": "application/json", "x-request-timeout-s": "0.3"}

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "stop": ["a"],
        "logit_bias": {"5": 1.0},
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"a": [1]},
    },
    "/v1/completions": {"prompt": [[1, 2], [3]], "max_tokens": 2, "n": 1, "seed": 7, "stream": True},
    "/v1/responses": {"input": [{"role": "user", "content": "x"}], "max_output_tokens": 2, "text": {"format": None}},
    "/v1/embeddings": {"input": ["x", "y"], "pooling": "mean", "dimensions": 2},
    "/v1/messages": {
        "model": "",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "max_tokens": 2,
        "system": "y",
    },
    "/generate": {"inputs": "x", "parameters": {"max_new_tokens": 2, "stop": ["a"]}},
    "/tokenize": {"inputs": "x"},
    "/invocations": {"inputs": "x", "parameters": {"max_new_tokens": 2}},
}

ODDITIES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**64,
    10**400,
    -(10**30),
    1e308,
    0.1,
    "",
    "\x00",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": "text"},
    ["\ud83d"],
    [[2**40]],
]


def mutate(value: Any, random_source: random.Random) -> Any:
    """Returns a copy with something odd somewhere."""
    if random_source.random() < 0.25:
        return random_source.choice(ODDITIES)
    if isinstance(value, dict) and value:
        key = random_source.choice(list(value))
        if random_source.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return value | {key: mutate(value[key], random_source)}
    if isinstance(value, list) and value:
        index = random_source.randrange(len(value))
        return [*value[:index], mutate(value[index], random_source), *value[index + 1 :]]
    return random_source.choice(ODDITIES)


async def test_odd_bodies_are_answered_or_refused(rest: Any) -> None:
    random_source = random.Random(1)
    for path in [*VALID] * 40:
        body = json.dumps(mutate(VALID[path], random_source)).encode()
        response = await rest.http.post(path, content=body, headers=HEADERS)
        assert response.status_code < 500 or response.status_code == 504, (body[:300], response.text)
    await rest.idle()


async def test_cut_and_flipped_bytes_are_refused_or_answered(rest: Any) -> None:
    random_source = random.Random(2)
    for path in [*VALID] * 20:
        whole = json.dumps(VALID[path]).encode()
        body = bytearray(whole[: random_source.randrange(len(whole) + 1)])
        for _ in range(random_source.randrange(3)):
            if body:
                body[random_source.randrange(len(body))] = random_source.randrange(256)
        response = await rest.http.post(path, content=bytes(body), headers=HEADERS)
        assert response.status_code < 500 or response.status_code == 504, bytes(body)
    await rest.idle()


ENCODINGS = [
    b"[" * 100_000,
    b'{"prompt":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"prompt":"x","prompt":"y","max_tokens":1}',
    b'\xef\xbb\xbf{"prompt":"x"}',
    b'{"prompt":"\xff"}',
    b'{"prompt":NaN}',
    b'{"prompt":"x","temperature":Infinity}',
    '{"prompt":"x"}'.encode("utf-16"),
    b"null",
    b'"x"',
]


async def test_encodings_and_depths(rest: Any) -> None:
    for body in ENCODINGS:
        response = await rest.http.post("/v1/completions", content=body, headers=HEADERS)
        assert response.status_code in (200, 400, 413), body[:50]


async def test_a_body_of_too_many_keys_is_too_large(rest: Any) -> None:
    keys = b",".join(b'"%x":0' % number for number in range(20_000))
    for path in VALID:
        response = await rest.http.post(path, content=b'{"prompt":"x",%b}' % keys, headers=HEADERS)
        assert (response.status_code, "20000 objects, lists and keys" in response.text) == (413, True)


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
STREAM = b'{"prompt":"x","max_tokens":3000,"ignore_eos":true,"stream":true}'
WHOLE = STREAM.replace(b"true}", b"false}")


def with_body(body: bytes, length: int | None = None) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % (len(body) if length is None else length) + body


BROKEN = [
    b"",
    b"POST /v1/comp",
    HEAD,
    with_body(STREAM[:20], len(STREAM)),
    HEAD + b'transfer-encoding: chunked\r\n\r\n5\r\n{"pro',
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    with_body(STREAM),
    with_body(WHOLE),
    with_body(WHOLE) + with_body(WHOLE),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    with_body(b"", -5),
]


@pytest.mark.parametrize("ending", ["half-closed", "closed", "reset"])
async def test_connections_that_end_anywhere(rest: Any, ending: str) -> None:
    host, _, port = rest.base_url.removeprefix("http://").partition(":")
    for sent in BROKEN:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        await writer.drain()
        if sent in (with_body(STREAM), with_body(WHOLE)):
            await rest.router.until(lambda: rest.router.stats().running_count == 1)
        if ending == "half-closed":
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 10)
        if ending == "reset":
            writer.transport.abort()
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await rest.idle()
    assert (await rest.post("/v1/completions", prompt="x", max_tokens=1)).status_code == 200


ENDS_TOO_LARGE = {b"HTTP/1.1 431 Request Header Fields Too Large", b"reset"}


async def test_a_head_that_is_too_large_is_refused(rest: Any) -> None:
    start = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"
    assert b" 431 " in await rest.raw(start, b"x-a: " + b"a" * 40_000 + b"\r\n\r\n")
    assert b" 431 " in await rest.raw(start, b"".join(b"x-%d: 1\r\n" % n for n in range(8000)), b"\r\n")
    assert b" 431 " in await rest.raw(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n")
    fine = start + b"x-a: " + b"a" * 20_000 + b"\r\nconnection: close\r\n\r\n"
    assert b" 200 " in await rest.raw(fine)
    endless = [start, *[b"x-a: " + b"a" * 60_000] * 20]
    assert (await rest.raw(*endless)).partition(b"\r\n")[0] in ENDS_TOO_LARGE


async def test_a_body_is_not_taken_for_a_head(rest: Any) -> None:
    body = json.dumps({"prompt": "x" * 60_000, "max_tokens": 1, "truncate_prompt_tokens": 5}).encode()
    start = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    both = (start + b"\r\n") % len(body) + body + start % len(body)
    answers = await rest.raw(both + b"connection: close\r\n", b"\r\n", body)
    assert b" 200 " in answers


SMUGGLED = [
    b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"content-length: 0\r\ncontent-length: 6\r\n\r\n",
    b"content-length: +0\r\n\r\n",
    b"transfer-encoding: gzip\r\n\r\n",
    b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"x-a: b\r\n c\r\n\r\n",
    b"x-a: b\x00c\r\n\r\n",
]


async def test_a_request_whose_end_is_in_doubt_hides_no_other(rest: Any) -> None:
    """Where a proxy before the sidecar saw another end, what follows would be somebody else's request."""
    for doubtful in SMUGGLED:
        answer = await rest.raw(HEAD + doubtful + b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 "), (doubtful, answer)
        assert answer.count(b"HTTP/1.1 ") == 1, (doubtful, answer)


SLOW = [
    b"",
    b"POST /v1/comp",
    HEAD,
    with_body(STREAM[:20], len(STREAM)),
    HEAD + b'transfer-encoding: chunked\r\n\r\n5\r\n{"pro',
    b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\nGET /ping",
]


async def test_whoever_stops_sending_is_not_waited_for(deploy_rest: Callable[..., Any]) -> None:
    async with deploy_rest(read_timeout_s=0.2) as rest:
        host, _, port = rest.base_url.removeprefix("http://").rpartition(":")
        for sent in SLOW:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert b"HTTP/1.1 408 " in answer, (sent, answer)
            writer.close()
        await rest.idle()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> "asyncio.Future[bytes]":
    """Writes a piece now and then until the server ends the connection; returns what was read by then."""
    ended = asyncio.ensure_future(reader.read())
    sent_count = 0
    while not ended.done() and sent_count < 200:
        writer.write(piece)
        sent_count += 1
        await asyncio.wait([ended], timeout=0.05)
    assert ended.done()
    return ended


async def test_a_trickle_is_not_taken_for_progress(deploy_rest: Callable[..., Any]) -> None:
    """A byte now and then, which bounds between two of them would let go on forever."""
    async with deploy_rest(read_timeout_s=0.3) as rest:
        host, _, port = rest.base_url.removeprefix("http://").rpartition(":")
        for start in (b"GET /ping HTTP/1.1\r\nx-a: ", with_body(b'{"prompt":"', 1000)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(start)
            answer = await trickle(reader, writer, b"x")
            # A byte that was under way when the connection was closed resets it, and the answer may be lost with that.
            if not isinstance(answer.exception(), ConnectionResetError):
                assert b"HTTP/1.1 408 " in answer.result()
                assert b"connection: close" in answer.result().lower()
            writer.close()


async def test_the_rest_of_a_body_that_was_refused_is_not_read_forever(deploy_rest: Callable[..., Any]) -> None:
    async with deploy_rest(read_timeout_s=0.3) as rest:
        host, _, port = rest.base_url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"30d40\r\n" + b" " * 0x30D40 + b"\r\n")
        ended = await trickle(reader, writer, b"5\r\nxxxxx\r\n")
        answers = [] if ended.exception() else ended.result().split(b"\r\n")[:1]
        assert answers in ([], [b"HTTP/1.1 413 Request Entity Too Large"])
        writer.close()
        await rest.idle()


async def test_a_long_answer_is_not_cut_by_the_time_to_send(deploy_rest: Callable[..., Any]) -> None:
    """Nor by the beginning of a next request behind it."""
    async with deploy_rest(read_timeout_s=0.1) as rest:
        host, _, port = rest.base_url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        began_s = time.monotonic()
        writer.write(with_body(STREAM) + b"GET /ping HT")
        answer = await asyncio.wait_for(reader.readuntil(b"data: [DONE]"), 20)
        assert time.monotonic() - began_s > 0.1
        answer += await asyncio.wait_for(reader.read(), 10)
        assert answer.count(b"HTTP/1.1 ") == 2
        assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"408 ")
        writer.close()

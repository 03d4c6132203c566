"""No prompt, no completion and no key is in a log, however a request ends and however much is logged."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import structlog

from headrace.client import AsyncClient, Choices, EbnfGrammar, HeadraceError, Image, JsonSchema, Regex
from headrace.router.tokenizer import Tokenizer
from headrace.services.access_list import hash_key
from headrace.services.log import LogFormat, LogLevel, configure
from headrace.shard.engines.fake import FakeOptions

PROMPT = "my-deepest-secret"
KEY = "hr_the-very-key"
ERROR_TOKEN_ID = 40_001
NO_RETRIES = (("grpc.enable_retries", 0),)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, at the most talkative level."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure(level=LogLevel.DEBUG, style=LogFormat.JSON, stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


async def attempt(work: Any) -> str:
    """Returns the reason of a call's error; empty if it went well."""
    try:
        await work
    except HeadraceError as error:
        return error.reason
    return ""


async def streamed(client: AsyncClient) -> None:
    async with client.chat_stream([{"role": "user", "content": PROMPT}], max_new_token_count=4) as stream:
        async for _ in stream:
            pass


async def ask_over_grpc(client: AsyncClient, channel: grpc.aio.Channel) -> set[str]:
    """Makes calls of every kind that end in every way; returns the reasons of their errors."""
    constraints = (
        JsonSchema({"type": PROMPT}),
        Regex(f"({PROMPT}"),
        EbnfGrammar(f"root ::= {PROMPT}"),
        Choices([PROMPT, PROMPT]),
    )
    image = Image(url=f"https://example.com/{PROMPT}.png")
    reasons = {
        await attempt(client.generate(PROMPT, max_new_token_count=4, request_id="r-1")),
        await attempt(streamed(client)),
        await attempt(client.embed([PROMPT], pooling="mean")),
        await attempt(client.tokenize(PROMPT)),
        await attempt(client.generate(PROMPT, stop_sequences=[PROMPT * 400])),
        await attempt(client.generate(PROMPT, banned_words=[PROMPT, ""])),
        await attempt(client.generate(PROMPT, temperature=-1.0)),
        await attempt(client.generate(PROMPT, model=PROMPT)),
        await attempt(client.generate(PROMPT, adapter=PROMPT)),
        await attempt(client.generate(PROMPT * 10_000)),
        await attempt(client.generate(PROMPT, cache_salt=PROMPT * 1000)),
        await attempt(client.generate([1, 2, ERROR_TOKEN_ID], max_new_token_count=4)),
        await attempt(client.chat([{"role": PROMPT, "content": PROMPT}])),
        await attempt(client.chat([{"role": "user", "content": [PROMPT, image]}])),
        await attempt(client.flush_prefix_cache()),
        *[await attempt(client.generate(PROMPT, constraint=constraint)) for constraint in constraints],
    }
    for raw in (PROMPT.encode(), b"\x0a\xff" + PROMPT.encode(), b"\x0a\x04\xff\xfe\xfd\xfc" + PROMPT.encode()):
        call = channel.unary_unary("/headrace.v1.GenerateService/Generate")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(raw, metadata=(("authorization", f"Bearer {KEY}"),))
    return reasons


async def ask_over_http(rest: Any) -> set[int]:
    headers = {"authorization": f"Bearer {KEY}"}
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}
    answers = [
        await rest.http.post("/v1/chat/completions", json=chat, headers=headers),
        await rest.http.post("/v1/chat/completions", json=chat, headers={"x-api-key": KEY + "x"}),
        await rest.http.post("/v1/chat/completions", json=chat | {PROMPT: PROMPT}, headers=headers),
        await rest.http.post("/v1/chat/completions", content=f'{{"{PROMPT}', headers=headers),
        await rest.http.post("/generate", json={"inputs": PROMPT, "parameters": {"stop": PROMPT}}, headers=headers),
        await rest.http.post(f"/{PROMPT}", json=chat, headers=headers),
        await rest.http.get(f"/v1/models?key={KEY}&prompt={PROMPT}", headers=headers),
        await rest.http.get("/v1/models", headers=headers | {"x-request-timeout-s": PROMPT}),
        await rest.http.get("/v1/models", headers=headers | {"x-long": PROMPT * 5000}),
    ]
    return {answer.status_code for answer in answers}


async def test_no_prompt_and_no_key_is_logged(
    deploy_rest: Callable[..., Any], tmp_path: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    access_file = tmp_path / "access.toml"
    access_file.write_text(f'[keys.app]\nsha256 = "{hash_key(KEY).hex()}"\n')
    engine = FakeOptions(error_token_id=ERROR_TOKEN_ID)
    async with deploy_rest(access_file=access_file, engine=engine) as rest:
        address = rest.router.address
        async with AsyncClient(address, key=KEY, channel_options=NO_RETRIES, deadline_s=20) as client:
            reasons = await ask_over_grpc(client, rest.router.channel)
            statuses = await ask_over_http(rest)

            def fail(_tokenizer: Tokenizer, text: str, **_options: Any) -> Any:
                raise ValueError(f"a bug that quotes {text}")

            monkeypatch.setattr(Tokenizer, "encode", fail)
            reasons.add(await attempt(client.generate(PROMPT)))
            reasons.add(await attempt(client.embed([PROMPT], pooling="mean")))
        async with AsyncClient(address, key=f"{KEY}x", channel_options=NO_RETRIES, deadline_s=20) as stranger:
            reasons.add(await attempt(stranger.generate(PROMPT)))
    text = log.getvalue()
    # All these ways were gone, and a line was written for each.
    assert {"", "INVALID_REQUEST", "MODEL_NOT_FOUND", "FEATURE_UNSUPPORTED", "ROW_FAILED", "FORBIDDEN", "INTERNAL",
            "UNAUTHENTICATED"} <= reasons  # fmt: skip
    assert {200, 400, 401, 404, 422, 431} <= statuses
    for event in ("call_ended", "call_crashed", "row_failed"):
        assert event in text
    assert "r-1" in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line.get("key_name") for line in lines if line.get("code") == "PERMISSION_DENIED"} == {"app"}
    for secret in (PROMPT, PROMPT[:12], KEY, KEY[:12], hash_key(KEY).hex()):
        assert secret not in text

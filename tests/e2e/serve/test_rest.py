"""HTTP as an operator starts it: `headrace serve --rest`, and `headrace rest` beside a router."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import jsonschema

Launch = Callable[..., AbstractAsyncContextManager[Any]]
READY = re.compile(r"headrace serves \S+ on (\S+)")
LISTENS = re.compile(r"headrace rest listens on (\S+) for (\S+)")
SLOW = ("--engine=fake", "--engine-option=step_time_s=0.02")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TURNS = [{"role": "user", "content": "Who are you?"}]


def http_client(address: str) -> httpx2.AsyncClient:
    if address.startswith("unix:"):
        transport = httpx2.AsyncHTTPTransport(uds=address.removeprefix("unix:"))
        return httpx2.AsyncClient(base_url="http://sidecar", transport=transport, timeout=60)
    return httpx2.AsyncClient(base_url=f"http://{address}", timeout=60)


@asynccontextmanager
async def serve_with_rest(launch: Launch, *flags: str, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Any, Any]]:
    arguments = ("smollm2-135m-instruct", "--listen=127.0.0.1:0", f"--rest={listen}", "--propagation-s=0.3", *flags)
    async with launch("serve", *arguments) as program:
        await program.wait_output(READY)
        address = (await program.wait_output(LISTENS))[1]
        async with http_client(address) as http:
            yield program, http


async def test_a_real_model_keeps_to_the_language_in_every_protocol(launch: Launch) -> None:
    real = ("--dtype=float32", "--thread-count=2", "--embedding-pooling=mean", "--cors-allow-origin=https://a.example")
    async with serve_with_rest(launch, *real) as (_, http):

        async def ask(path: str, **body: Any) -> Any:
            response = await http.post(path, json={"model": "", "temperature": 0, **body})
            assert response.status_code == 200, response.text
            return response.json()

        def chat(**options: Any) -> Any:
            return ask("/v1/chat/completions", messages=TURNS, max_tokens=80, **options)

        schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        schema_of_tgi = {"type": "json_schema", "value": {"name": "person", "schema": PERSON}}
        for constrained in ({"response_format": schema}, {"response_format": schema_of_tgi}, {"guided_json": PERSON}):
            text = (await chat(**constrained))["choices"][0]["message"]["content"]
            jsonschema.validate(json.loads(text), PERSON)
        text = (await chat(guided_regex=r"[a-z]{3}-\d{2}"))["choices"][0]["message"]["content"]
        assert re.fullmatch(r"[a-z]{3}-\d{2}", text)
        text = (await chat(structured_outputs={"choice": ["yes", "no"]}))["choices"][0]["message"]["content"]
        assert text in ("yes", "no")
        form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
        response = await ask("/v1/responses", input=TURNS, max_output_tokens=80, text=form)
        jsonschema.validate(json.loads(response["output"][0]["content"][0]["text"]), PERSON)
        form = {"format": {"type": "json_schema", "schema": PERSON}}
        message = await ask("/v1/messages", messages=TURNS, max_tokens=80, output_config=form)
        jsonschema.validate(json.loads(message["content"][0]["text"]), PERSON)
        assert message["stop_reason"] == "end_turn"
        grammar = {"type": "regex", "value": "(ab){3}"}
        generated = await http.post("/generate", json={"inputs": "x", "parameters": {"grammar": grammar}})
        assert generated.json()["generated_text"] == "ababab"
        embeddings = await http.post("/v1/embeddings", json={"input": ["The sky", "The sky"]})
        first, second = (entry["embedding"] for entry in embeddings.json()["data"])
        assert len(first) == 576
        assert first == second
        asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
        allowed = await http.options("/v1/chat/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        refused = await http.options("/v1/chat/completions", headers=asked | {"origin": "https://b.example"})
        assert "access-control-allow-origin" not in refused.headers


async def test_a_token_wakes_no_thread_of_grpc_but_its_poller(launch: Launch) -> None:
    async with serve_with_rest(launch, "--engine=fake", "--engine-option=step_time_s=0.002") as (program, http):
        sidecar = int(json.loads((await program.wait_log(re.compile(r".*\"sidecar_started\".*")))[0])["pid"])
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
        await http.post("/v1/completions", json=body)
        before = switch_count(sidecar, "event_engine")
        assert (await http.post("/v1/completions", json=body)).text.endswith("[DONE]\n\n")
        assert switch_count(sidecar, "event_engine") - before < 100


def switch_count(process_id: int, thread_name: str) -> int:
    """Returns how often threads of this name waited for something; that they exist is checked, too."""
    statuses = [path.read_text() for path in Path(f"/proc/{process_id}/task").glob("*/status")]
    chosen = [status for status in statuses if status.startswith(f"Name:\t{thread_name}\n")]
    assert chosen, statuses
    waits = (re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status) for status in chosen)
    return sum(int(found[1]) for found in waits if found)


async def test_a_sidecar_that_dies_is_restarted_and_drains_with_the_router(
    launch: Launch, tmp_path: Path, is_alive: Callable[[int], bool]
) -> None:
    async with serve_with_rest(launch, *SLOW, listen=f"unix:{tmp_path / 'rest.sock'}") as (program, http):
        assert (await http.get("/health")).status_code == 200
        sidecar = int(json.loads((await program.wait_log(re.compile(r".*\"sidecar_started\".*")))[0])["pid"])
        os.kill(sidecar, signal.SIGKILL)
        await program.wait_output(LISTENS)
        assert (await http.get("/health")).status_code == 200
        children = program.children()
        body = {"prompt": "Once", "max_tokens": 60, "ignore_eos": True, "stream": True}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            events = [event async for event in _until_ended(response, program)]
        assert events[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in events[-2]
        assert await program.process.wait() == 0
        assert len(children) == 2
        assert not any(is_alive(pid) for pid in children)


async def _until_ended(response: Any, program: Any) -> AsyncIterator[str]:
    """Reads a stream, and tells the server to end while it runs."""
    is_told = False
    async for line in response.aiter_lines():
        if line:
            yield line
        if line and not is_told:
            is_told = True
            program.process.send_signal(signal.SIGTERM)


async def test_a_sidecar_alone_refuses_until_there_is_a_router_and_ends_in_order(launch: Launch) -> None:
    flags = ("--router=127.0.0.1:9", "--listen=127.0.0.1:0", "--propagation-s=0.3")
    async with launch("rest", *flags) as program:
        address = (await program.wait_output(LISTENS))[1]
        async with http_client(address) as http:
            assert (await http.get("/health")).status_code == 503
            refused = await http.post("/v1/completions", json={"prompt": "x"})
            assert refused.status_code == 503
            program.process.send_signal(signal.SIGTERM)
            await program.wait_log(re.compile("drain_started"))
            assert (await http.get("/health")).json()["error"] == "the sidecar is going away"
        assert await asyncio.wait_for(program.process.wait(), 10) == 0
    for wrong in (("--listen=0.0.0.0:0",), ("--listen=192.0.2.1:80", "--insecure"), ("--colour=red",)):
        async with launch("rest", *flags, *wrong) as program:
            assert await program.process.wait() == 2
            assert "headrace rest: " in program.log()

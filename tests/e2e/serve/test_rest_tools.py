"""Tools and reasoning over HTTP, on models whose calls are forced and whose reasoning ends by chance."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import chat_templates as templates
import jsonschema
import openai
import pytest
from tiny_chat_model import save_tiny_chat_model

from headrace.client import AsyncClient

Launch = Callable[..., AbstractAsyncContextManager[Any]]
READY = re.compile(r"headrace serves \S+ on (\S+)")
LISTENS = re.compile(r"headrace rest listens on (\S+) for (\S+)")
SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "string", "maxLength": 8}, "depth": {"type": "integer", "minimum": 1}},
    "required": ["where", "depth"],
    "additionalProperties": False,
}
QUESTION: Any = [{"role": "user", "content": "What is there?"}]


@asynccontextmanager
async def serve_model(launch: Launch, model: Path) -> AsyncIterator[tuple[str, str]]:
    """Yields the address of the router and the URL of the sidecar."""
    flags = ("--dtype=float32", "--thread-count=1", "--kv-memory=64MiB", "--rest=127.0.0.1:0", "--propagation-s=0")
    async with launch("serve", str(model), "--listen=127.0.0.1:0", *flags) as program:
        address = (await program.wait_output(READY))[1]
        yield address, f"http://{(await program.wait_output(LISTENS))[1]}"


async def test_a_forced_call_and_its_result(launch: Launch, tmp_path: Path) -> None:
    model = save_tiny_chat_model(tmp_path / "model", templates.HEADERS_WITH_DATE, ("<|python_tag|>",))
    async with serve_model(launch, model) as (_, url):
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
            await check_anthropic(client)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            await check_responses(client)


async def check_anthropic(client: anthropic.AsyncAnthropic) -> None:
    asked: Any = {
        "model": "",
        "messages": QUESTION,
        "max_tokens": 900,
        "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "thinking": {"type": "disabled"},
        "extra_body": {"temperature": 0},
    }
    answer = await client.messages.create(**asked)
    [block] = answer.content
    assert (block.type, block.name, answer.stop_reason) == ("tool_use", "look", "tool_use")
    jsonschema.validate(block.input, SCHEMA)
    async with client.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert streamed.stop_reason == "tool_use"
    assert [(part.type, part.name, part.input) for part in streamed.content] == [("tool_use", "look", block.input)]
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "a cat"}]}
    turns = [*QUESTION, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    after = await client.messages.create(
        **asked | {"messages": turns, "max_tokens": 4, "tool_choice": {"type": "none"}}
    )
    assert after.stop_reason == "max_tokens"
    count = await client.messages.count_tokens(model="", messages=turns, tools=asked["tools"])
    assert count.input_tokens > answer.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match=r"^.*tool_choice\.name: "):
        await client.messages.create(**asked | {"tool_choice": {"type": "tool", "name": "leap"}})


async def check_responses(client: openai.AsyncOpenAI) -> None:
    asked: Any = {
        "model": "",
        "input": QUESTION,
        "max_output_tokens": 900,
        "temperature": 0,
        "tools": [{"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA, "strict": True}],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": False,
    }
    answer = await client.responses.create(**asked)
    [item] = answer.output
    assert (item.type, item.name, item.status, answer.status) == ("function_call", "look", "completed", "completed")
    jsonschema.validate(json.loads(item.arguments), SCHEMA)
    events = [event async for event in await client.responses.create(**asked, stream=True)]
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == item.arguments
    assert events[-1].response.output[0].arguments == item.arguments
    output = {"type": "function_call_output", "call_id": item.call_id, "output": "a cat"}
    turns = [*QUESTION, item.model_dump(exclude_none=True), output]
    free = asked | {"input": turns, "max_output_tokens": 4, "tool_choice": "none"}
    after = await client.responses.with_raw_response.create(**free)
    assert after.headers["x-headrace-ignored"] == "tools.strict, input.id, input.status"
    assert after.parse().status == "incomplete"


async def test_reasoning_comes_apart_from_the_answer(launch: Launch, tmp_path: Path) -> None:
    marks = ("<think>", "</think>")
    model = save_tiny_chat_model(tmp_path / "model", templates.THOUGHTS_KEPT_APART, visible_marks=marks)
    async with serve_model(launch, model) as (address, url):
        drawn, reasoning, text = await draw_an_answer(address)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asked: Any = {"model": "", "temperature": 1, "extra_body": {**drawn, "top_k": 0, "top_p": 1.0}}
            await check_chat(client, {**asked, "messages": QUESTION, "max_tokens": 40}, reasoning, text)
            await check_items(client, {**asked, "input": QUESTION, "max_output_tokens": 40}, reasoning, text)
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as claude:
            body: Any = {"model": "", "messages": QUESTION, "max_tokens": 9, "extra_body": {"temperature": 0}}
            [block] = (await claude.messages.create(**body)).content
            async with claude.messages.stream(**body) as stream:
                [streamed] = (await stream.get_final_message()).content
            assert (block.type, block.thinking) == (streamed.type, streamed.thinking) == ("thinking", block.thinking)


async def draw_an_answer(address: str) -> tuple[dict[str, Any], str, str]:
    """Finds a seed with which the model ends its reasoning; returns how it was drawn, the reasoning and the text."""
    async with AsyncClient(address) as client:
        [mark_id] = (await client.tokenize("</think>", add_special_tokens=False)).token_ids
        size = (await client.get_model()).limits.vocabulary_size
        texts = [await client.detokenize([token_id], include_special_tokens=True) for token_id in range(size)]
        bias = {token_id: -100.0 for token_id, text in enumerate(texts) if not re.fullmatch(r"[!-~]", text)}
        free: Any = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_token_count": 40, "raw_output": True}
        for seed in range(50):
            drawn: dict[str, Any] = {"seed": seed, "logit_bias": bias | {mark_id: 2.5}}
            raw = (await client.chat(QUESTION, **free, **drawn)).completions[0].text
            reasoning, _, text = raw.partition("</think>")
            if reasoning and text and raw.count("</think>") == 1:
                return drawn, reasoning, text
    raise AssertionError("no seed ends the reasoning once")


async def check_chat(client: openai.AsyncOpenAI, asked: dict[str, Any], reasoning: str, text: str) -> None:
    message: Any = (await client.chat.completions.create(**asked)).choices[0].message
    assert (message.reasoning_content, message.content) == (reasoning, text)
    deltas = [chunk.choices[0].delta async for chunk in await client.chat.completions.create(**asked, stream=True)]
    pieces = [(getattr(delta, "reasoning_content", None) or "", delta.content or "") for delta in deltas]
    assert ("".join(thought for thought, _ in pieces), "".join(said for _, said in pieces)) == (reasoning, text)
    is_answer = [bool(said) for thought, said in pieces if thought or said]
    assert is_answer == sorted(is_answer), "reasoning came after the answer had begun"


async def check_items(client: openai.AsyncOpenAI, asked: dict[str, Any], reasoning: str, text: str) -> None:
    include = {"include": ["message.output_text.logprobs"]}
    whole = await client.responses.create(**asked, **include)
    thought, said = whole.output
    assert (thought.type, thought.content[0].text) == ("reasoning", reasoning)
    assert (said.type, whole.output_text) == ("message", text)
    assert "".join(token.token for token in said.content[0].logprobs) == text
    events = [event async for event in await client.responses.create(**asked, **include, stream=True)]
    assert [item.model_dump(exclude={"id"}) for item in events[-1].response.output] == [
        item.model_dump(exclude={"id"}) for item in whole.output
    ]

"""Tools over HTTP in Anthropic's protocol and in OpenAI's responses, on a model whose calls are forced."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anthropic
import chat_templates as templates
import jsonschema
import openai
import pytest
from tiny_chat_model import save_tiny_chat_model

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


async def test_a_forced_call_and_its_result(launch: Launch, tmp_path: Path) -> None:
    model = save_tiny_chat_model(tmp_path / "model", templates.HEADERS_WITH_DATE, ("<|python_tag|>",))
    flags = ("--dtype=float32", "--thread-count=1", "--kv-memory=64MiB", "--rest=127.0.0.1:0", "--propagation-s=0")
    async with launch("serve", str(model), "--listen=127.0.0.1:0", *flags) as program:
        await program.wait_output(READY)
        url = f"http://{(await program.wait_output(LISTENS))[1]}"
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
    assert after.headers["x-headrace-ignored"] == "tools.strict"
    assert after.parse().status == "incomplete"

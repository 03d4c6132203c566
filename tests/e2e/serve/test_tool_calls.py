"""Tools on models with random weights, through the client: what is forced is a call that fits its schema."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import chat_templates as templates
import jsonschema
import openai
import pytest
from tiny_chat_model import save_tiny_chat_model

from headrace.client.aio import AsyncClient
from headrace.client.chat import Message, NamedTool, Tool
from headrace.client.constraint import Choices
from headrace.client.results import Completion, FinishReason
from headrace.contract.errors import FeatureUnsupported, InvalidRequest

Runner = Callable[..., AbstractAsyncContextManager[Any]]
LOOK = Tool(
    name="look",
    description="Looks at a place.",
    parameters={
        "type": "object",
        "properties": {
            "where": {"type": "string", "maxLength": 8},
            "how": {"enum": ["closely", "</tool_call>"]},
            "depth": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["where", "how", "depth"],
        "additionalProperties": False,
    },
)
WAIT = Tool(name="wait", description="Does nothing.")
TOOLS = [LOOK, WAIT]
BY_NAME = {tool.name: tool for tool in TOOLS}
LISTENS = re.compile(r"headrace rest listens on (\S+) ")
QUESTION = Message("user", "What is there?")
FAMILIES = {
    "hermes": (templates.TURNS_WITH_TOOLS, ("<tool_call>", "</tool_call>", "<think>", "</think>")),
    "llama3": (templates.HEADERS_WITH_DATE, ("<|python_tag|>",)),
    "mistral": (templates.BRACKETS_IN_TURNS, ("[TOOL_CALLS]",)),
    "deepseek": (templates.MARKS_AND_FENCES, ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")),
}
UNTHINKING = {"template_arguments": {"enable_thinking": False}}


@asynccontextmanager
async def client_of(serve: Runner, folder: Path) -> AsyncIterator[AsyncClient]:
    flags = ("--dtype=float32", "--thread-count=1", "--kv-memory=64MiB")
    async with serve("serve", *flags, model=str(folder)) as server, AsyncClient(server.address) as client:
        yield client


@asynccontextmanager
async def openai_client(launch: Runner, router: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with launch("rest", f"--router={router}", "--listen=127.0.0.1:0") as program:
        address = (await program.wait_output(LISTENS))[1]
        async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            yield client


def check_calls(completion: Completion) -> None:
    """Whether a completion is calls of the tools alone, each with arguments of its schema."""
    assert completion.tool_calls
    assert completion.text == ""
    for call in completion.tool_calls:
        jsonschema.validate(call.arguments, BY_NAME[call.name].parameters or {"maxProperties": 0})
        assert re.fullmatch("[a-z2-7]{9}", call.id)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_forced_model_calls_with_arguments_that_fit(
    serve: Runner, launch: Runner, tmp_path: Path, family: str
) -> None:
    folder = save_tiny_chat_model(tmp_path / "model", *FAMILIES[family])
    async with client_of(serve, folder) as client:
        model = await client.get_model()
        assert model.tool_format == family
        assert {"chat.tools", "chat.tool_choice", "chat.parallel_tool_calls"} <= set(model.supported_fields)
        forced: dict[str, Any] = {"tools": TOOLS, "max_new_token_count": 900, **UNTHINKING}
        answers = await asyncio.gather(
            *(
                client.chat([QUESTION], **forced, tool_choice=choice, parallel_tool_calls=False, seed=seed)
                for choice in ("required", NamedTool("look"), NamedTool("wait"))
                for seed in range(4)
            )
        )
        for answer in answers:
            [completion] = answer.completions
            check_calls(completion)
            assert len(completion.tool_calls) == 1
            assert completion.end.reason is FinishReason.TOOL_CALL
        assert {answer.completions[0].tool_calls[0].name for answer in answers[4:8]} == {"look"}
        assert len({answer.completions[0].tool_calls[0].id for answer in answers}) == len(answers)
        await check_many(client, forced)
        await check_next_turn(client, answers[4].completions[0])
        if family == "llama3":
            await check_own_will(client)
            async with openai_client(launch, client.target) as over_http:
                await check_openai(over_http)


async def check_many(client: AsyncClient, forced: dict[str, Any]) -> None:
    """Several calls in one completion, several completions, and the same as a stream."""
    several = {**forced, "tool_choice": "required", "completion_count": 2, "seed": 5, "token_logprobs": True}
    # The end is as likely as a further call, with an end that is favoured.
    several["logit_bias"] = dict.fromkeys((await client.get_model()).end_of_sequence_token_ids, 30.0)
    answer = await client.chat([QUESTION], request_id="same", **several)
    for completion in answer.completions:
        check_calls(completion)
        assert completion.end.reason is FinishReason.END_OF_SEQUENCE
        assert len(completion.logprobs) == completion.end.generated_token_count
    streamed: dict[int, list[Any]] = {0: [], 1: []}
    async with client.chat_stream([QUESTION], request_id="same", **several) as stream:
        async for delta in stream:
            assert not delta.text
            streamed[delta.index].extend(delta.tool_calls)
    for completion in answer.completions:
        pieces = streamed[completion.index]
        assert [(piece.id, piece.name, piece.arguments_json) for piece in pieces] == [
            (call.id, call.name, call.arguments_json) for call in completion.tool_calls
        ]


async def check_next_turn(client: AsyncClient, completion: Completion) -> None:
    """The call and its result go back to the model, in its own words."""
    call = completion.tool_calls[0]
    turn = [QUESTION, Message("assistant", tool_calls=[call]), call.result('{"seen": "a cät"}')]
    tokens = await client.tokenize_chat(turn, tools=TOOLS)
    text = await client.detokenize(tokens.token_ids, include_special_tokens=True)
    assert call.name in text.split("What is there?")[-1]
    assert "a cät" in text
    answer = await client.chat(turn, tools=TOOLS, max_new_token_count=8)
    assert answer.usage.prompt_token_count == len(tokens.token_ids)


async def check_own_will(client: AsyncClient) -> None:
    """What the model says where it is free to: the router finds calls in it, and nothing else."""
    call = '{"name": "look", "parameters": {"where": "up"}}'

    async def say(text: str, **options: Any) -> Completion:
        """Makes the model write a text that nobody told the router of."""
        options = {"tools": TOOLS, "max_new_token_count": 200, **options}
        return (await client.chat([QUESTION], constraint=Choices([text]), **options)).completions[0]

    spoken = await say(call)
    assert (spoken.text, spoken.tool_calls[0].arguments) == ("", {"where": "up"})
    assert spoken.end.reason is FinishReason.END_OF_SEQUENCE
    single = await say(f"{call}; {call}", parallel_tool_calls=False)
    assert len(single.tool_calls) == 1
    assert single.end.reason is FinishReason.TOOL_CALL
    for options in ({"tool_choice": "none"}, {"tools": None}, {"raw_output": True}):
        kept = await say(call, **options)
        assert (kept.text, kept.tool_calls) == (call, ())
    strange = '{"name": "leap", "parameters": {"where": "up"}}'
    assert (await say(strange)).text == strange
    begun, rest = Message("assistant", '{"name": "lo'), 'ok", "parameters": {}}'
    continued = await client.chat([QUESTION, begun], continue_final_message=True, constraint=Choices([rest]))
    assert continued.text == rest
    with pytest.raises(InvalidRequest) as caught:
        await client.chat([QUESTION], tools=[WAIT, Tool(name="f", parameters={"not": {}})], tool_choice="required")
    assert [violation.field for violation in caught.value.violations] == ["chat.tools[1].parameters"]


async def check_openai(client: openai.AsyncOpenAI) -> None:
    """The same over HTTP, with OpenAI's own client: whole, as a stream, and back in the next turn."""
    tools: Any = [
        {"type": "function", "function": {"name": "look", "parameters": LOOK.parameters, "strict": True}},
        {"type": "function", "function": {"name": "wait"}},
    ]
    question: Any = [{"role": "user", "content": QUESTION.content}]
    asked: dict[str, Any] = {
        "model": "",
        "messages": question,
        "tools": tools,
        "max_tokens": 900,
        "seed": 3,
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
    }
    named = {"type": "function", "function": {"name": "look"}}
    for choice in ("required", named):
        answer = await client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False)
        [said] = answer.choices
        assert said.finish_reason == "tool_calls"
        assert said.message.content is None
        [call] = said.message.tool_calls or ()
        jsonschema.validate(json.loads(call.function.arguments), BY_NAME[call.function.name].parameters or {})
        assert call.type == "function"
    async with client.chat.completions.stream(**asked, tool_choice=named) as stream:
        async for _ in stream:
            pass
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.finish_reason == "tool_calls"
    [again] = streamed.message.tool_calls or ()
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    turn = [*question, said.message, {"role": "tool", "tool_call_id": call.id, "content": "a cat"}]
    short = {**asked, "messages": turn, "max_tokens": 4}
    free = await client.chat.completions.with_raw_response.create(**short, tool_choice="none")
    assert free.headers["x-headrace-ignored"] == "tools.function.strict"
    after = free.parse()
    assert after.choices[0].message.tool_calls is None
    assert after.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "leap"}})
    assert caught.value.param == "tool_choice.function.name"


async def test_reasoning_on_its_way(serve: Runner, tmp_path: Path) -> None:
    folder = save_tiny_chat_model(tmp_path / "model", templates.THOUGHTS_KEPT_APART)
    async with client_of(serve, folder) as client:
        model = await client.get_model()
        assert (model.reasoning_format, model.tool_format) == ("think", "")
        with pytest.raises(FeatureUnsupported) as caught:
            await client.chat([QUESTION], tools=TOOLS)
        assert caught.value.field == "chat.tools"
        short: dict[str, Any] = {"max_new_token_count": 12, "temperature": 0.0}
        [thought] = (await client.chat([QUESTION], **short)).completions
        [raw] = (await client.chat([QUESTION], **short, raw_output=True)).completions
        assert (thought.text, raw.reasoning) == ("", "")
        assert thought.reasoning == raw.text.strip(" \t\r\n")
        assert thought.token_ids == raw.token_ids
        begun = [QUESTION, Message("assistant", "It is")]
        [answer] = (await client.chat(begun, **short, continue_final_message=True)).completions
        assert answer.text
        assert not answer.reasoning

"""GenerateService over real gRPC: the stream contract, errors with details, and what a caller's exit leaves behind."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.client.service_config import SERVICE_CONFIG_JSON
from headrace.shard.engines.fake import FakeOptions
from headrace.shard.engines.fake_oracle import expected_tokens
from headrace.v1 import generate_service_pb2 as pb
from headrace.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart, ImagePart
from headrace.v1.router_service_pb2 import AbortRequest, GetModelRequest
from headrace.v1.sampling_pb2 import SamplingParams

Deploy = Callable[..., AbstractAsyncContextManager[Any]]
GREEDY = SamplingParams(temperature=0.0)


def prompt(number: int, length: int = 40) -> list[int]:
    return [100 + (number * 7919 + index * 31) % 40000 for index in range(length)]


def request_of(prompt_ids: list[int], count: int = 8, **fields: Any) -> pb.GenerateRequest:
    defaults: dict[str, Any] = {
        "token_ids": pb.TokenIds(ids=prompt_ids),
        "sampling": GREEDY,
        "stopping": pb.StoppingRules(max_new_token_count=count),
    }
    given = {**defaults, **fields}
    return pb.GenerateRequest(**{name: value for name, value in given.items() if value is not None})


async def collect(call: Any) -> list[pb.GenerateStreamResponse]:
    return [message async for message in call]


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call if not hasattr(call, "__aiter__") else await collect(call)
    return caught.value


def detail(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    raise AssertionError(f"no {kind.DESCRIPTOR.name} in {status}")


def reason(error: grpc.aio.AioRpcError) -> str:
    return str(detail(error, error_details_pb2.ErrorInfo).reason)


async def test_a_stream_is_started_deltas_finished_and_equals_the_unary_answer(deploy: Deploy) -> None:
    async with deploy() as server:
        sampling = SamplingParams(temperature=0.0, seed=3)
        request = request_of(prompt(1), 25, request_id="mine", sampling=sampling)
        messages = await collect(server.generate.GenerateStream(request))
        kinds = [message.WhichOneof("event") for message in messages]
        assert kinds[0] == "started"
        assert kinds[-1] == "finished"
        assert set(kinds[1:-1]) == {"delta"}
        assert messages[0].started.request_id == "mine"
        tokens = [token_id for message in messages[1:-1] for token_id in message.delta.token_ids]
        assert tuple(tokens) == expected_tokens(prompt(1), 25)
        unary = await server.generate.Generate(request_of(prompt(1), 25, sampling=sampling))
        assert unary.completions[0].text == "".join(message.delta.text for message in messages[1:-1])
        assert list(unary.completions[0].token_ids) == tokens
        assert unary.completions[0].end == messages[-1].finished.ends[0]
        assert unary.usage.generated_token_count == 25


async def test_a_chat_is_rendered_by_the_models_template(deploy: Deploy) -> None:
    async with deploy() as server:
        chat = ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(text="Hello")])])
        tokenized = await server.generate.Tokenize(pb.TokenizeRequest(chat=chat))
        assert "<|im_start|>user\nHello<|im_end|>" in tokenized.text
        answer = await server.generate.Generate(request_of([], 5, token_ids=None, chat=chat))
        assert tuple(answer.completions[0].token_ids) == expected_tokens(tokenized.token_ids, 5)
        detokenized = await server.generate.Detokenize(
            pb.DetokenizeRequest(token_ids=tokenized.token_ids, include_special_tokens=True)
        )
        assert detokenized.text == tokenized.text


async def test_sixty_four_calls_share_steps_and_leave_nothing_behind(deploy: Deploy) -> None:
    async with deploy() as server:
        calls = [server.generate.GenerateStream(request_of(prompt(n), 40)) for n in range(64)]
        for number, messages in enumerate(await asyncio.gather(*(collect(call) for call in calls))):
            tokens = [token_id for message in messages[1:-1] for token_id in message.delta.token_ids]
            assert tuple(tokens) == expected_tokens(prompt(number), 40)
        assert server.stats().row_count / server.stats().step_count > 10
        await server.until(lambda: server.stats().leased_block_count == 0)
        server.check_integrity()


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": pb.TokenIds()}, "token_ids"),
    ({"token_ids": None, "text": ""}, "text"),
    ({"token_ids": None}, "prompt"),
    ({"token_ids": pb.TokenIds(ids=[7, 49152])}, "token_ids.ids[1]"),
    ({"token_ids": pb.TokenIds(ids=[5] * 4001)}, "token_ids"),
    ({"token_ids": None, "text": "word " * 5000}, "text"),
    ({"token_ids": None, "chat": ChatPrompt()}, "chat.messages"),
    ({"sampling": SamplingParams(temperature=-1)}, "sampling.temperature"),
    ({"sampling": SamplingParams(temperature=float("nan"))}, "sampling.temperature"),
    ({"sampling": SamplingParams(top_p=0)}, "sampling.top_p"),
    ({"sampling": SamplingParams(top_k=-1)}, "sampling.top_k"),
    ({"stopping": pb.StoppingRules(max_new_token_count=0)}, "stopping.max_new_token_count"),
    ({"stopping": pb.StoppingRules(stop_sequences=[""])}, "stopping.stop_sequences[0]"),
    ({"stopping": pb.StoppingRules(stop_sequences=["x"] * 17)}, "stopping.stop_sequences"),
    ({"priority": 11}, "priority"),
    ({"request_id": "a b"}, "request_id"),
]


@pytest.mark.parametrize(("fields", "path"), BAD_REQUESTS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_bad_field_is_named(deploy: Deploy, fields: dict[str, Any], path: str) -> None:
    async with deploy() as server:
        error = await failure(server.generate.GenerateStream(request_of(prompt(1), **fields)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        violations = detail(error, error_details_pb2.BadRequest).field_violations
        assert [violation.field for violation in violations] == [path]
        assert reason(error) == "INVALID_REQUEST"
        assert server.stats().step_count == 0


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"sampling": SamplingParams(min_p=0.1)}, "sampling.min_p"),
    ({"sampling": SamplingParams(repetition_penalty=1.3)}, "sampling.repetition_penalty"),
    ({"constraint": pb.Constraint(json_object=True)}, "constraint"),
    ({"output": pb.OutputOptions(processed_logprobs=True)}, "output.processed_logprobs"),
    ({"watermark": pb.Watermark(enabled=True)}, "watermark"),
    ({"speculation": True}, "speculation"),
]


@pytest.mark.parametrize(("fields", "path"), UNSUPPORTED, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_the_engine_lacks_is_refused_by_name(deploy: Deploy, fields: dict[str, Any], path: str) -> None:
    async with deploy() as server:
        error = await failure(server.generate.Generate(request_of(prompt(1), **fields)))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert detail(error, error_details_pb2.ErrorInfo).metadata["field"] == path


@pytest.mark.parametrize("image", [ImagePart(data=b"\x89PNG"), ImagePart(url="https://127.0.0.1/picture.png")])
async def test_an_image_is_refused_by_name(deploy: Deploy, image: ImagePart) -> None:
    async with deploy() as server:
        chat = ChatPrompt(messages=[ChatMessage(role="user", content=[ContentPart(image=image)])])
        request = request_of([], token_ids=None, chat=chat)
        calls = [
            server.generate.Generate(request),
            server.generate.GenerateStream(request),
            server.generate.Tokenize(pb.TokenizeRequest(chat=chat)),
        ]
        for call in calls:
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert detail(error, error_details_pb2.ErrorInfo).metadata["field"] == "chat.messages[0].content"


async def test_an_unknown_model_is_not_found(deploy: Deploy) -> None:
    async with deploy() as server:
        error = await failure(server.generate.Generate(request_of(prompt(1), model="other")))
        assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_context_longer_than_the_kv_memory_is_cut_to_it(deploy: Deploy) -> None:
    """A request that leaves its length open is not refused for what the whole context would need."""
    async with deploy(engine=FakeOptions(block_size=16, block_count=8)) as server:
        answer = await server.generate.Generate(request_of(prompt(1), stopping=None))
        assert answer.completions[0].end.reason == pb.FINISH_REASON_CONTEXT_LIMIT
        assert tuple(answer.completions[0].token_ids) == expected_tokens(prompt(1), 8 * 16 + 1 - 40)
        model = await server.router.GetModel(GetModelRequest())
        assert model.model.limits.context_token_count == 8 * 16 + 1
        error = await failure(server.generate.Generate(request_of(prompt(1, 200))))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_an_error_carries_the_id_that_the_request_chose(deploy: Deploy) -> None:
    async with deploy() as server:
        request = request_of(prompt(1), request_id="mine", model="other")
        for call in (server.generate.Generate(request), server.generate.GenerateStream(request)):
            assert detail(await failure(call), error_details_pb2.ErrorInfo).metadata["request_id"] == "mine"
        # What is no id is not repeated to anybody, nor written to the log.
        error = await failure(server.generate.Generate(request_of(prompt(1), request_id="a b", model="other")))
        assert len(detail(error, error_details_pb2.ErrorInfo).metadata["request_id"]) == 32


async def test_a_hundred_megabytes_and_invalid_utf8_harm_nobody(deploy: Deploy) -> None:
    async with deploy() as server:
        raw = server.channel.unary_unary("/headrace.v1.GenerateService/Generate")
        error = await failure(raw(b"\x1a" + b"\x80\x80\x80\x32" + b"x" * 100_000_000))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(4 * 2**20) in (error.details() or "")
        text = b"\xff\xfe not text"
        error = await failure(raw(b"\x1a" + bytes([len(text)]) + text))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
        assert (violation.field, violation.description) == ("text", "must be UTF-8; byte 0 is not")
        error = await failure(raw(b"\x1a\xff"))
        assert (error.code(), reason(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        answer = await server.generate.Generate(request_of(prompt(1), 5))
        assert tuple(answer.completions[0].token_ids) == expected_tokens(prompt(1), 5)


async def test_a_full_queue_answers_with_a_hint_that_stock_clients_follow(deploy: Deploy) -> None:
    retrying = (("grpc.service_config", SERVICE_CONFIG_JSON), ("grpc.enable_retries", 1))
    engine = FakeOptions(step_time_s=0.005)
    async with deploy(engine=engine, step_row_limit=1, waiting_request_limit=1, channel_options=retrying) as server:
        async with grpc.aio.insecure_channel(server.address, options=[("grpc.enable_retries", 0)]) as plain:
            running = asyncio.ensure_future(collect(server.generate.GenerateStream(request_of(prompt(1), 60))))
            await server.until(lambda: server.stats().running_count == 1)
            waiting = asyncio.ensure_future(collect(server.generate.GenerateStream(request_of(prompt(2), 5))))
            await server.until(lambda: server.app.pipeline.admission.waiting_count == 1)
            method = "/headrace.v1.GenerateService/Generate"
            error = await failure(plain.unary_unary(method)(request_of(prompt(3), 5).SerializeToString()))
            assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            delay = detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds()
            pushback = int(dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"])
            assert abs(pushback - delay) <= 1  # one is rounded, the other cut
            patient = await server.generate.Generate(request_of(prompt(3), 5))
            assert tuple(patient.completions[0].token_ids) == expected_tokens(prompt(3), 5)
            await asyncio.gather(running, waiting)


async def test_a_cancelled_call_frees_its_blocks(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        call = server.generate.GenerateStream(request_of(prompt(1), 3000))
        await anext(aiter(call))
        await server.until(lambda: server.stats().leased_block_count > 0)
        call.cancel()
        await server.until(lambda: server.stats().leased_block_count == 0)
        assert server.app.pipeline.desk.request_count == 0
        unary = server.generate.Generate(request_of(prompt(2), 3000))
        await server.until(lambda: server.stats().leased_block_count > 0)
        unary.cancel()
        await server.until(lambda: server.stats().leased_block_count == 0)
        server.check_integrity()


async def test_the_callers_deadline_ends_the_work(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        error = await failure(server.generate.GenerateStream(request_of(prompt(1), 3000), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await server.until(lambda: server.stats().leased_block_count == 0)
        await server.until(lambda: server.app.pipeline.desk.request_count == 0)


async def test_abort_by_id(deploy: Deploy) -> None:
    async with deploy(engine=FakeOptions(step_time_s=0.002)) as server:
        call = server.generate.GenerateStream(request_of(prompt(1), 3000, request_id="mine"))
        await anext(aiter(call))
        aborted = await server.router.Abort(AbortRequest(request_ids=["mine", "other"]))
        assert list(aborted.aborted_request_ids) == ["mine"]
        messages = await collect(call)
        assert messages[-1].finished.ends[0].reason == pb.FINISH_REASON_CANCELLED


async def test_a_stalled_reader_is_cut_off_and_slows_nobody(deploy: Deploy) -> None:
    # 28 tokens of text for each step would take long to fill HTTP/2's window: log-probabilities are bigger.
    output = pb.OutputOptions(token_logprobs=True, top_logprob_count=20)
    narrow = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    async with deploy(stall_timeout_s=0.3, channel_options=narrow) as server:
        stalled = server.generate.GenerateStream(request_of(prompt(1), 4000, output=output))
        await anext(aiter(stalled))
        quick = await server.generate.Generate(request_of(prompt(2), 200))
        assert tuple(quick.completions[0].token_ids) == expected_tokens(prompt(2), 200)
        await server.until(lambda: server.app.pipeline.desk.request_count == 0)
        await server.until(lambda: server.stats().leased_block_count == 0)
        error = await failure(stalled)
        assert (error.code(), reason(error)) == (grpc.StatusCode.CANCELLED, "READER_STALLED")

"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc
import grpc.aio

from headrace.client import calls
from headrace.client.aio_channel import AsyncChannel, is_task_cancelled
from headrace.client.aio_stream import AsyncGenerationStream
from headrace.client.calls import Call, ResponseT, ResultT
from headrace.client.channel import (
    DEFAULT_DEADLINE_S,
    DEFAULT_MESSAGE_SIZE_LIMIT_BYTES,
    DEFAULT_TARGET,
    ChannelOption,
    Connection,
)
from headrace.client.chat import MessageLike
from headrace.client.errors import error_from_rpc
from headrace.client.operations import Adapter, Health, Load, Model, ProbeResult, Replica
from headrace.client.options import (
    CallOptions,
    ChatOptions,
    EmbedOptions,
    GenerateOptions,
    TokenizeChatOptions,
    TokenizeOptions,
    check_names,
)
from headrace.client.requests import PoolingLike, Prompt
from headrace.client.results import Embeddings, Generation, Tokenization
from headrace.client.tls import Tls

if TYPE_CHECKING:  # an import of OpenTelemetry, which only some callers have
    from opentelemetry.trace import TracerProvider


class AsyncClient:
    """A connection to headrace servers, for one event loop.

    One client carries any number of calls at the same time; make one and keep
    it. It connects at the first call. Close it, or use it as a context manager:

        async with AsyncClient("127.0.0.1:50051") as client:
            answer = await client.generate("Once upon a time", max_new_token_count=32)
            print(answer.text)

    A call that the server did not admit is tried again, up to five times in all
    and within its deadline: when the server is full, draining or cannot be
    reached. Whatever fails raises an error of `headrace.client`, such as
    `QueueFull`, with the gRPC error as its `__cause__`.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
        wait_for_ready: bool = False,
        metadata: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        key: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        round_robin: bool | None = None,
        multiplexes: bool = False,
        message_size_limit_bytes: int = DEFAULT_MESSAGE_SIZE_LIMIT_BYTES,
        channel_options: Sequence[ChannelOption] = (),
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        """Describes the connection; nothing is sent yet.

        Args:
            target: `HOST:PORT`, another target of gRPC such as `dns:///NAME:PORT` or `unix:PATH`, or several
                `IP:PORT`.
            deadline_s: seconds for each call that does not say otherwise; None waits for ever.
            wait_for_ready: whether calls wait for a connection until their deadline, in place of failing at once.
            metadata: headers of every call, such as `{"x-team": "search"}`.
            tls: how to encrypt, such as `Tls(ca_file="ca.pem")`; None sends in plain text.
            key: shown to the server with every call, as `authorization: Bearer ...`.
            credentials: gRPC's own, in place of `tls`.
            round_robin: whether calls take turns among the addresses, leaving out servers whose health is not SERVING.
                None does so when several are given. Then even `get_health` reaches only servers that are serving:
                to examine one that is not, make a client for it alone.
            multiplexes: whether generation streams share calls, which saves this process and the server most of what a
                message costs when there are many at a time. Then they go to the server that the call went to, for a
                minute or so, in place of being balanced one by one, and a reader that blocks the event loop delays all.
            message_size_limit_bytes: largest message sent or received.
            channel_options: further arguments of gRPC's core; they win over the client's own.
            tracer_provider: makes a span for each call and has the server go on with its trace; None traces nothing.

        Raises:
            OSError: a file of `tls` cannot be read.
            ValueError: several addresses are given that gRPC cannot take together, `tls` beside `credentials`, or a
                key that no header can carry.
        """
        connection = Connection.to(
            target,
            deadline_s=deadline_s,
            wait_for_ready=wait_for_ready,
            metadata=metadata,
            tls=tls,
            key=key,
            credentials=credentials,
            round_robin=round_robin,
            message_size_limit_bytes=message_size_limit_bytes,
            channel_options=channel_options,
            tracer_provider=tracer_provider,
        )
        self._channel = AsyncChannel(connection, multiplexes=multiplexes)

    @property
    def target(self) -> str:
        """What the client connects to, as gRPC resolves it."""
        return self._channel.target

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        """Completes a text, or token ids used as they are, and returns the whole answer.

        All options are listed at `GenerateOptions`.

        Raises:
            InvalidRequest: a value is out of range; `violations` name the fields and limits.
            QueueFull: the server is full; `retry_after_s` says when to come back.
            DeadlineExceeded: the answer took longer than `deadline_s`.
            ServerUnreachable: there is no connection.
            HeadraceError: the call failed in another way.
        """
        return await self._channel.unary(calls.generate(prompt, options), options)

    async def chat(self, messages: Sequence[MessageLike], **options: Unpack[ChatOptions]) -> Generation:
        """Answers a conversation, rendered by the model's own chat template.

        Messages are `Message`s, or mappings as OpenAI's API takes them. All options are listed at `ChatOptions`.

        Raises:
            HeadraceError: as `generate`.
        """
        return await self._channel.unary(calls.chat(messages, options), options)

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGenerationStream:
        """Completes a text, or token ids used as they are, and returns the deltas as they are generated.

        Returns at once. Failures are raised where the stream is read, those of the values here.

        Raises:
            InvalidRequest: a value does not fit its field.
        """
        return self._stream(calls.stream(prompt, options), options)

    def chat_stream(self, messages: Sequence[MessageLike], **options: Unpack[ChatOptions]) -> AsyncGenerationStream:
        """Answers a conversation and returns the deltas as they are generated; see `chat` and `stream`.

        Raises:
            InvalidRequest: a value does not fit its field.
        """
        return self._stream(calls.chat_stream(messages, options), options)

    async def embed(
        self, inputs: str | Sequence[Prompt], *, pooling: PoolingLike, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """Turns texts, or token ids used as they are, into vectors made of the model's hidden states.

        `pooling` is `"mean"` or `"last"`: which one gives good vectors depends on what the model was trained for.
        All options are listed at `EmbedOptions`.

        Raises:
            InvalidRequest: a value is out of range; `violations` name the fields and limits.
            FeatureUnsupported: the engine has no embeddings.
            RequestAborted: someone called `abort`.
            HeadraceError: as `generate`.
        """
        return await self._channel.unary(calls.embed(inputs, pooling, options), options)

    async def tokenize(self, text: str, **options: Unpack[TokenizeOptions]) -> Tokenization:
        """Returns the token ids of a text, exactly as `generate` would use them.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._channel.unary(calls.tokenize(text, options), options)

    async def tokenize_chat(
        self, messages: Sequence[MessageLike], **options: Unpack[TokenizeChatOptions]
    ) -> Tokenization:
        """Returns what the chat template makes of a conversation, as text and as token ids.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._channel.unary(calls.tokenize_chat(messages, options), options)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        model: str = "",
        *,
        include_special_tokens: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> str:
        """Returns the text of token ids; bytes that are no UTF-8 are replaced.

        Raises:
            HeadraceError: the call failed.
        """
        call = calls.detokenize(token_ids, model, include_special_tokens=include_special_tokens)
        return await self._operate(call, options)

    async def list_models(self, **options: Unpack[CallOptions]) -> tuple[Model, ...]:
        """Returns the served models, by name.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.list_models(), options)

    async def get_model(self, model: str = "", **options: Unpack[CallOptions]) -> Model:
        """Returns a model's limits, defaults and capabilities. The name may be left out if there is just one.

        Raises:
            ModelNotFound: no model has this name.
            HeadraceError: the call failed in another way.
        """
        return await self._operate(calls.get_model(model), options)

    async def get_load(self, **options: Unpack[CallOptions]) -> Load:
        """Returns what the router is doing right now.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.get_load(), options)

    async def watch_load(self, interval_s: float | None = None, **options: Unpack[CallOptions]) -> AsyncIterator[Load]:
        """Iterates over the load, one report in `interval_s` seconds, in [0.05, 60]; every second if left out.

        Goes on until it is closed: unlike other calls it has no deadline unless one is given.

        Raises:
            HeadraceError: the call failed, or the server went away.
        """
        check_names(options, CallOptions)
        options.setdefault("deadline_s", None)
        call = calls.watch_load(interval_s)
        responses = self._channel.responses(call, options)
        try:
            async for response in responses:
                yield call.read(response)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self.target) from error
        except asyncio.CancelledError:
            # The client was closed.
            if is_task_cancelled():
                raise
        finally:
            responses.cancel()

    async def list_replicas(self, **options: Unpack[CallOptions]) -> tuple[Replica, ...]:
        """Returns the replicas and their state, in the order they were added.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.list_replicas(), options)

    async def add_replica(self, addresses: str | Sequence[str], **options: Unpack[CallOptions]) -> Replica:
        """Connects a model server, given the addresses of its ranks, rank 0 first.

        Returns at once; the replica serves when its state says so. Never tried again by itself.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.add_replica(addresses), options)

    async def drain_replica(self, replica_id: str, **options: Unpack[CallOptions]) -> Replica:
        """Gives a replica no new requests and lets the running ones end.

        Raises:
            ReplicaNotFound: no replica has this id.
            HeadraceError: the call failed in another way.
        """
        return await self._operate(calls.drain_replica(replica_id), options)

    async def remove_replica(self, replica_id: str, **options: Unpack[CallOptions]) -> None:
        """Disconnects a replica; its requests go on elsewhere. Never tried again by itself.

        Raises:
            ReplicaNotFound: no replica has this id.
            HeadraceError: the call failed in another way.
        """
        await self._operate(calls.remove_replica(replica_id), options)

    async def abort(self, request_ids: str | Sequence[str], **options: Unpack[CallOptions]) -> tuple[str, ...]:
        """Ends requests early, whoever made them, and returns the ids of those that were waiting or running.

        Safe to repeat: ids that are not running are ignored.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.abort(request_ids), options)

    async def list_adapters(self, model: str = "", **options: Unpack[CallOptions]) -> tuple[Adapter, ...]:
        """Returns a model's loaded LoRA adapters, by name.

        Raises:
            ModelNotFound: no model has this name.
            HeadraceError: the call failed in another way.
        """
        return await self._operate(calls.list_adapters(model), options)

    async def load_adapter(self, name: str, source: str, model: str = "", **options: Unpack[CallOptions]) -> Adapter:
        """Loads a LoRA adapter on every replica of a model, from a PEFT folder that each of them can read.

        Never tried again by itself.

        Raises:
            FeatureUnsupported: the engine runs no adapters.
            HeadraceError: the call failed in another way.
        """
        return await self._operate(calls.load_adapter(name, source, model), options)

    async def unload_adapter(self, name: str, model: str = "", **options: Unpack[CallOptions]) -> None:
        """Unloads an adapter once the requests that use it have ended. Never tried again by itself.

        Raises:
            AdapterNotFound: no adapter has this name.
            HeadraceError: the call failed in another way.
        """
        await self._operate(calls.unload_adapter(name, model), options)

    async def flush_prefix_cache(self, model: str = "", **options: Unpack[CallOptions]) -> int:
        """Forgets every cached prefix that no running request uses, and returns how many KV blocks that set free.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.flush_prefix_cache(model), options)

    async def get_health(self, **options: Unpack[CallOptions]) -> Health:
        """Returns the state of the router, its replicas and their ranks, with reasons.

        Raises:
            HeadraceError: the call failed.
        """
        return await self._operate(calls.get_health(), options)

    async def probe(self, replica_id: str = "", **options: Unpack[CallOptions]) -> ProbeResult:
        """Generates one token through a replica, past the queue and the prefix cache; without an id, through any.

        Raises:
            ReplicaNotFound: no replica has this id.
            HeadraceError: the call failed in another way.
        """
        return await self._operate(calls.probe(replica_id), options)

    async def close(self) -> None:
        """Ends every call of this client and closes its connections. Safe to repeat."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _operate(self, call: Call[ResponseT, ResultT], options: CallOptions) -> ResultT:
        check_names(options, CallOptions)
        return await self._channel.unary(call, options)

    def _stream(self, call: calls.StreamCall, options: CallOptions) -> AsyncGenerationStream:
        return AsyncGenerationStream(self._channel.generation(call, options), self.target)

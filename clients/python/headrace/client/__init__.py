"""The Python client of headrace: `AsyncClient` for asyncio, `Client` for threads.

Both have the same methods. The answer to a conversation, as it is generated:

    import asyncio
    from headrace.client import AsyncClient, QueueFull

    async def main() -> None:
        async with AsyncClient("127.0.0.1:50051") as client:
            question = {"role": "user", "content": "Why is the sky blue?"}
            try:
                async with client.chat_stream([question], max_new_token_count=64, seed=7) as stream:
                    async for delta in stream:
                        print(delta.text, end="", flush=True)
                print(f" ({stream.finished.usage.generated_token_count} tokens)")
            except QueueFull as error:
                print(f"the server is full; try again in {error.retry_after_s} s")

    asyncio.run(main())

Options are keywords with the names of `headrace.v1`, listed at `GenerateOptions`.
What fails raises a subclass of `HeadraceError`: the class that the server
raised, with its details, or one of `ServerUnreachable`, `ServerStatusError` and
`StreamBroken`. Nothing here needs more than grpcio and protobuf.
"""

from headrace.client.aio import AsyncClient
from headrace.client.aio_stream import AsyncGenerationStream
from headrace.client.chat import Image, Message, MessageLike, NamedTool, Tool, ToolCall, ToolChoice, ToolLike
from headrace.client.constraint import (
    Choices,
    Constraint,
    EbnfGrammar,
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    Watermark,
)
from headrace.client.errors import ServerStatusError, ServerUnreachable, StreamBroken, status_code
from headrace.client.operations import (
    Adapter,
    ComponentHealth,
    EmbeddingLimits,
    Health,
    HealthCheck,
    HealthState,
    Load,
    Model,
    ModelLimits,
    ProbeResult,
    Replica,
    ReplicaHealth,
    ReplicaLoad,
    ReplicaState,
    StepProfile,
)
from headrace.client.options import (
    CallOptions,
    ChatOptions,
    EmbedOptions,
    GenerateOptions,
    TokenizeChatOptions,
    TokenizeOptions,
)
from headrace.client.requests import PoolingLike, Prompt
from headrace.client.results import (
    Completion,
    CompletionEnd,
    Delta,
    Embedding,
    Embeddings,
    Finished,
    FinishReason,
    Generation,
    Started,
    TextSpan,
    Timings,
    Tokenization,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from headrace.client.service_config import ROUND_ROBIN_SERVICE_CONFIG_JSON, SERVICE_CONFIG_JSON
from headrace.client.sync import Client
from headrace.client.sync_stream import GenerationStream
from headrace.client.tls import Tls
from headrace.client.watermark import WatermarkEvidence, detect_watermark
from headrace.contract.errors import (
    AdapterNotFound,
    AdaptersFull,
    DeadlineExceeded,
    Draining,
    DuplicateAdapter,
    DuplicateReplica,
    DuplicateRequest,
    FeatureUnsupported,
    FieldViolation,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    QueueFull,
    QuotaExceeded,
    ReaderStalled,
    ReplicaBusy,
    ReplicaNotFound,
    RequestAborted,
    RequestError,
    RequestRefused,
    RowFailed,
    ServerError,
    ShardLost,
    Unauthenticated,
)
from headrace.contract.pooling import Pooling
from headrace.contract.sampling import LengthPenalty, SamplingOptions

__all__ = [
    "ROUND_ROBIN_SERVICE_CONFIG_JSON",
    "SERVICE_CONFIG_JSON",
    "Adapter",
    "AdapterNotFound",
    "AdaptersFull",
    "AsyncClient",
    "AsyncGenerationStream",
    "CallOptions",
    "ChatOptions",
    "Choices",
    "Client",
    "Completion",
    "CompletionEnd",
    "ComponentHealth",
    "Constraint",
    "DeadlineExceeded",
    "Delta",
    "Draining",
    "DuplicateAdapter",
    "DuplicateReplica",
    "DuplicateRequest",
    "EbnfGrammar",
    "EmbedOptions",
    "Embedding",
    "EmbeddingLimits",
    "Embeddings",
    "FeatureUnsupported",
    "FieldViolation",
    "FinishReason",
    "Finished",
    "Forbidden",
    "GenerateOptions",
    "Generation",
    "GenerationStream",
    "HeadraceError",
    "Health",
    "HealthCheck",
    "HealthState",
    "Image",
    "InvalidRequest",
    "JsonObject",
    "JsonSchema",
    "LarkGrammar",
    "LengthPenalty",
    "Load",
    "Message",
    "MessageLike",
    "Model",
    "ModelLimits",
    "ModelNotFound",
    "NamedTool",
    "NotReady",
    "Pooling",
    "PoolingLike",
    "ProbeResult",
    "Prompt",
    "QueueFull",
    "QuotaExceeded",
    "ReaderStalled",
    "Regex",
    "Replica",
    "ReplicaBusy",
    "ReplicaHealth",
    "ReplicaLoad",
    "ReplicaNotFound",
    "ReplicaState",
    "RequestAborted",
    "RequestError",
    "RequestRefused",
    "RowFailed",
    "SamplingOptions",
    "ServerError",
    "ServerStatusError",
    "ServerUnreachable",
    "ShardLost",
    "Started",
    "StepProfile",
    "StreamBroken",
    "TextSpan",
    "Timings",
    "Tls",
    "TokenLogprob",
    "Tokenization",
    "TokenizeChatOptions",
    "TokenizeOptions",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolLike",
    "Unauthenticated",
    "Usage",
    "Watermark",
    "WatermarkEvidence",
    "detect_watermark",
    "status_code",
]

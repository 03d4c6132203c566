"""Every setting of every command: its name, type, default and meaning."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from headrace.services.log import LogFormat, LogLevel

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_SHARD_LISTEN = "127.0.0.1:50061"

Count = Annotated[int, Field(ge=0)]


class CommonSettings(BaseModel):
    """Settings of every server command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path | None = Field(None, description="TOML file with settings; flags and environment go before it.")
    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe event that is logged.")
    log_format: LogFormat = Field(
        LogFormat.AUTO, description="How a log line looks; auto is JSON unless on a terminal."
    )
    insecure: bool = Field(
        default=False, description="Listen beyond loopback although the connection is not encrypted."
    )
    message_size_limit_bytes: PositiveInt = Field(
        16 * 2**20,
        description="Largest message received or sent, in bytes.",
        json_schema_extra={"tgi": "payload-limit"},
    )


class ModelSettings(CommonSettings):
    """Settings that router and shard must agree on."""

    model: str = Field(
        description="A GGUF file, a folder with safetensors, a Hub id, or `smollm2-135m-instruct` for the example.",
        json_schema_extra={"tgi": "model-id", "positional": True},
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub id.")


class ShardEngineSettings(ModelSettings):
    """How a shard runs its model."""

    engine: str = Field("native", description="What runs the model: native or fake.")
    dtype: str = Field("auto", description="Of weights and KV: float32, bfloat16, or auto, which is float32.")
    device: str = Field("cpu", description="Device that the native engine runs on, as torch names it.")
    kernels: str = Field("auto", description="Version of the operators: a name, or auto for the fastest that runs.")
    threads: Count = Field(0, description="Threads of a forward pass; 0 leaves it to torch.")
    block_size: PositiveInt = Field(16, description="Tokens per KV block.")
    block_count: Count = Field(0, description="KV blocks; 0 sizes the cache by memory.")
    kv_memory_bytes: Count = Field(0, description="Memory for the KV cache in bytes; 0 takes half of what is free.")
    context_token_count: Count = Field(
        0,
        description="Longest prompt plus completion; 0 takes the model's.",
        json_schema_extra={"tgi": "max-total-tokens"},
    )
    engine_option: tuple[str, ...] = Field(
        (), description="NAME=VALUE for the engine itself; may be repeated. The fake engine takes all of its from here."
    )


class ShardSettings(ShardEngineSettings):
    """Settings of `headrace shard`."""

    listen: str = Field(DEFAULT_SHARD_LISTEN, description="Where routers reach the shard: host:port or unix:PATH.")
    supervised: bool = Field(
        default=False, description="End when standard input does: set by the process that starts the shard."
    )


class RouterCoreSettings(ModelSettings):
    """How a router admits, batches and goes away."""

    listen: str = Field(DEFAULT_LISTEN, description="Where clients reach the router: host:port or unix:PATH.")
    served_model_name: str | None = Field(
        None, description="Name that requests use; by default the last part of the model's name."
    )
    waiting_request_limit: Count = Field(
        512, description="Most requests that wait for their first step; more are refused with a hint to come back."
    )
    waiting_token_limit: PositiveInt = Field(2**20, description="Most prompt tokens that these hold together.")
    prompt_token_limit: Count = Field(
        0,
        description="Longest prompt; 0 allows all of the context but one token.",
        json_schema_extra={"tgi": "max-input-tokens"},
    )
    step_token_limit: PositiveInt = Field(
        2048, description="Most tokens computed in one step.", json_schema_extra={"tgi": "max-batch-prefill-tokens"}
    )
    step_row_limit: PositiveInt = Field(
        256, description="Most sequences in one step.", json_schema_extra={"tgi": "max-batch-size"}
    )
    prefill_chunk_token_limit: PositiveInt = Field(
        512, description="Most tokens of one prompt computed in one step; smaller keeps other streams smoother."
    )
    priority_head_start_s: PositiveFloat = Field(
        5.0, description="How long, in seconds, a request waits before it overtakes one of the next higher priority."
    )
    step_timeout_s: PositiveFloat = Field(
        120.0, description="A shard that answers no step for so many seconds counts as lost."
    )
    replay_timeout_s: PositiveFloat = Field(
        120.0, description="How long, in seconds, requests of a lost shard wait for one to come back."
    )
    stall_timeout_s: PositiveFloat = Field(
        30.0, description="A reader that takes nothing from its stream for so many seconds is cut off."
    )
    propagation_s: Annotated[float, Field(ge=0)] = Field(
        2.0, description="After SIGTERM: seconds in which late calls are still served, while health says NOT_SERVING."
    )
    drain_timeout_s: PositiveFloat = Field(
        90.0,
        description="Then: seconds that running requests may take to end.",
        json_schema_extra={"tgi": "graceful-termination-timeout"},
    )
    tokenizer_threads: PositiveInt = Field(
        2, description="Threads that tokenize and render chats.", json_schema_extra={"tgi": "validation-workers"}
    )


class RouterSettings(RouterCoreSettings):
    """Settings of `headrace router`."""

    shard: tuple[str, ...] = Field(
        (DEFAULT_SHARD_LISTEN,), description="Address of a shard; may be repeated, each is a replica of its own."
    )


class ServeSettings(RouterCoreSettings, ShardEngineSettings):
    """Settings of `headrace serve`."""

    replicas: PositiveInt = Field(1, description="Shard processes to start, each with a whole model.")


COMMANDS: dict[str, type[CommonSettings]] = {
    "serve": ServeSettings,
    "router": RouterSettings,
    "shard": ShardSettings,
}
"""The server commands and their settings."""

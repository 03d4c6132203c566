"""Every setting of every process, as frozen trees with defaults, limits and explanations."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic import NonNegativeFloat as NonNegative

from headrace.contract.pooling import Pooling
from headrace.services.address import Address, TcpAddress, parse_address
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.log import LogFormat, LogLevel
from headrace.services.server_tls import ServerTlsFiles
from headrace.services.settings_checks import (
    AddressText,
    TcpAddressText,
    check_adapters,
    check_listen_parts,
    check_pair,
    is_otlp_endpoint,
    join_listen_address,
    split_at_commas,
)
from headrace.services.thread_plan import check_binding


class _Settings(BaseModel):
    """What all settings have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ProcessSettings(_Settings):
    """Settings of every process."""

    insecure: bool = False
    """Accept connections without encryption from other machines and to them."""
    tls_certificate_file: str = ""
    """Certificate of this process in PEM, followed by those between it and its root. With it every TCP address takes
    TLS alone, metrics included; unix sockets do without. Read again when it is replaced."""
    tls_key_file: str = ""
    """Private key of that certificate in PEM, not encrypted."""
    tls_client_ca_file: str = ""
    """Roots in PEM of the certificates that clients have to show; empty asks for none."""
    log_level: LogLevel = LogLevel.INFO
    """Least severe line of the log."""
    log_format: LogFormat = LogFormat.AUTO
    """How the log looks; `auto` is readable on a terminal and JSON elsewhere."""
    metrics_address: Annotated[TcpAddressText, Field(json_schema_extra={"aliases": ["prometheus-port"]})] = ""
    """Where Prometheus scrapes the process over HTTP: a port of 127.0.0.1, or `host:port`. Empty offers no
    metrics."""

    otlp_endpoint: Annotated[str, AfterValidator(is_otlp_endpoint)] = ""
    """Where traces are sent by OTLP over gRPC: `http://host:port`, or `https://host:port` with TLS. Empty traces
    nothing. Needs the extra `tracing`."""
    otlp_service_name: str = ""
    """What traces call the process; empty is `headrace-router`, `headrace-shard` or `headrace-rest`."""
    trace_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin here which is recorded. Whether others are was decided where they began."""

    @property
    def server_tls_files(self) -> ServerTlsFiles | None:
        """What servers of this process show; None listens in plain text."""
        return ServerTlsFiles.of(
            certificate=self.tls_certificate_file, key=self.tls_key_file, client_ca=self.tls_client_ca_file
        )

    @property
    def metrics_listen_address(self) -> TcpAddress | None:
        """Where to answer scrapes, parsed; None for nowhere."""
        address = parse_address(self.metrics_address) if self.metrics_address else None
        assert address is None or isinstance(address, TcpAddress), "validated"
        return address

    @model_validator(mode="after")
    def _check_process(self) -> Self:
        check_pair(self, "tls_certificate_file", "tls_key_file")
        if self.tls_client_ca_file and not self.tls_certificate_file:
            raise ValueError("tls_client_ca_file needs a tls_certificate_file: without one nothing is encrypted")
        return self


class CommonSettings(ProcessSettings):
    """Settings of every process that knows the model."""

    model: Annotated[str, Field(json_schema_extra={"aliases": ["model-id"]})] = ""
    """The model: a GGUF file, a folder with config.json, tokenizer.json and safetensors, an id on the Hugging Face
    Hub, or `smollm2-135m-instruct`, the example model. May be given as the first argument."""
    context_token_limit: Annotated[NonNegativeInt, Field(json_schema_extra={"aliases": ["max-total-tokens"]})] = 0
    """Longest prompt plus completion in tokens; 0 takes the model's own limit, which it must not exceed."""
    step_row_limit: Annotated[PositiveInt, Field(json_schema_extra={"aliases": ["max-batch-size"]})] = 256
    """Most sequences in one step."""
    step_token_limit: Annotated[PositiveInt, Field(json_schema_extra={"aliases": ["max-batch-prefill-tokens"]})] = 2048
    """Most tokens computed in one step, over all its sequences."""


class EngineSettings(CommonSettings):
    """Settings of the engine in a model server."""

    engine: str = "native"
    """What runs the model: `native`, or `fake`, which makes tokens up for tests."""
    engine_option: tuple[str, ...] = ()
    """A further option of the engine as NAME=VALUE. May be repeated."""
    dtype: str = "auto"
    """Type of weights, activations and KV cache: `float32`, `bfloat16` or `auto`, which is float32 for weights that
    are stored in it, and for all on processors without instructions for bfloat16 (AVX512-BF16, AMX); else bfloat16."""
    device: str = "cpu"
    """Where the native engine computes, as torch names it."""
    kernels: str = "auto"
    """Version of the operators: `auto`, `reference`, `cpu` (C++, built on first use) or `triton`. On a CPU `auto` is
    `cpu` where there is a compiler; on other devices it is `reference`."""
    block_size: PositiveInt = 16
    """Tokens per KV block."""
    block_count: NonNegativeInt = 0
    """Number of KV blocks; 0 decides by `kv_memory`."""
    kv_memory: ByteSize = ByteSize(0)
    """Memory for the KV cache, in bytes or with a unit such as `4GiB`; 0 takes half of what is left after loading."""
    speculation: str = "off"
    """Who guesses tokens ahead, so that a step can bring several: `off`, `ngram`, which looks where the last tokens
    came before, or `draft`, a second model. What comes is the same either way."""
    draft_model: str = ""
    """The model that guesses with `speculation = draft`, named as `model` is; it has to have the same tokenizer."""
    draft_token_limit: PositiveInt = 8
    """Most tokens guessed for a sequence in one step."""
    adapter_limit: NonNegativeInt = 16
    """Most LoRA adapters that a shard holds at the same time, those included that are unloaded but still in use; 0
    takes none."""
    adapter_memory: ByteSize = ByteSize(512 * 2**20)
    """Most memory that the weights of a shard's LoRA adapters take together, in bytes or with a unit such as `1GiB`.
    Nothing is set aside for them."""
    adapter_rank_limit: PositiveInt = 256
    """Largest rank of a LoRA adapter."""
    thread_count: NonNegativeInt = 0
    """Threads of the native engine's operators; 0 takes one for each core that the process may use, which shards under
    `headrace serve` share."""
    cpu_binding: Annotated[str, AfterValidator(check_binding)] = "auto"
    """Processors that those threads are bound to, each to one: a list such as `0-3,8`, which shards under
    `headrace serve` share, `none`, or `auto`. With `auto` a shard takes all cores that the process may use, if it has
    as many threads, and shards under `headrace serve` take a share each."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine == "native" and not self.model:
            raise ValueError("no model is given; try smollm2-135m-instruct")
        if (self.speculation == "draft") is not bool(self.draft_model):
            raise ValueError("draft_model and speculation = draft go together")
        for option in self.engine_option:
            if "=" not in option:
                raise ValueError(f"engine option {option!r} is not NAME=VALUE")
        return self


class ShardSettings(EngineSettings):
    """Runs a model server: one process that executes the steps that a router plans."""

    listen: AddressText = "127.0.0.1:50061"
    """Where routers reach the shard: `host:port` or `unix:PATH`."""
    exit_with_parent: bool = False
    """End when standard input closes, which a supervisor holds open for as long as it lives."""

    @property
    def listen_address(self) -> Address:
        """Where to listen, parsed."""
        return parse_address(self.listen)


class RouterOnlySettings(CommonSettings):
    """Settings of a router, however its shards are started."""

    served_model_name: str = ""
    """What requests call the model; empty takes the last part of `model`."""
    listen: AddressText = "127.0.0.1:50051"
    """Where clients reach the router: `host:port` or `unix:PATH`."""
    hostname: Annotated[str | None, Field(json_schema_extra={"flag_only": True})] = None
    """Host to listen on, in place of the one in `listen`."""
    port: Annotated[NonNegativeInt | None, Field(le=65535, json_schema_extra={"flag_only": True})] = None
    """Port to listen on, in place of the one in `listen`; 0 lets the system choose."""
    message_size_limit: ByteSize = ByteSize(16 * 2**20)
    """Largest gRPC message received from a client or sent to one, in bytes or with a unit such as `16MiB`."""
    prompt_token_limit: Annotated[NonNegativeInt, Field(json_schema_extra={"aliases": ["max-input-tokens"]})] = 0
    """Longest prompt in tokens; 0 is what the context leaves room for."""
    completion_limit: Annotated[PositiveInt, Field(json_schema_extra={"aliases": ["max-best-of"]})] = 16
    """Most completions of one prompt that a request may ask for, those that `best_of` leaves out included."""
    embedding_input_limit: Annotated[PositiveInt, Field(json_schema_extra={"aliases": ["max-client-batch-size"]})] = 64
    """Most inputs of one request for embeddings."""
    watermark_key_file: str = ""
    """File with the keys of watermarks: on each line a name and a secret of at least 16 characters. The first is the
    default key. Empty offers no watermarks."""
    watermark_gamma: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the vocabulary that a watermark favours, where a request does not say."""
    watermark_delta: Annotated[float, Field(gt=0, le=100)] = 2.0
    """What a watermark adds to the logits that it favours, where a request does not say."""
    watermark_by_default: bool = False
    """Mark the completions of requests that do not say whether to."""
    adapter: Annotated[
        tuple[str, ...], BeforeValidator(split_at_commas), Field(json_schema_extra={"aliases": ["lora-adapters"]})
    ] = ()
    """A LoRA adapter as NAME=SOURCE, where SOURCE is a PEFT folder that every shard can read; loaded before the first
    request is taken. May be repeated, or be several between commas."""
    access_file: Annotated[str, Field(json_schema_extra={"aliases": ["keys-file"]})] = ""
    """TOML file with the keys that callers must show and the limits of their tenants. Read again when it is replaced.
    Empty asks for no keys."""
    shard_tls_ca_file: str = ""
    """Roots in PEM of the shards' certificates. With it every shard on a TCP address is reached by TLS."""
    shard_tls_certificate_file: str = ""
    """Certificate in PEM that the router shows to shards, which ask for one where other machines reach them."""
    shard_tls_key_file: str = ""
    """Private key of that certificate in PEM, not encrypted."""
    waiting_request_limit: PositiveInt = 512
    """Most requests between their arrival and their first step; more are told when to come back. One for several
    completions or embeddings counts as several."""
    waiting_token_limit: PositiveInt = 262_144
    """Most prompt tokens that the waiting requests hold together."""
    prefill_chunk_token_limit: PositiveInt = 512
    """Most tokens of one prompt computed in one step, so that a long prompt does not hold the others up; twice as many
    while there are no others."""
    priority_head_start_s: NonNegative = 5.0
    """How long a request of the next higher priority may overtake an older one, in seconds."""
    step_timeout_s: PositiveFloat = 60.0
    """A shard that answers no step for so long counts as lost, in seconds."""
    replay_timeout_s: PositiveFloat = 60.0
    """How long requests of a lost shard wait for one to come back, in seconds."""
    stall_timeout_s: PositiveFloat = 30.0
    """A client that reads nothing of its stream for so long is cut off, in seconds."""
    propagation_s: NonNegative = 3.0
    """After SIGTERM, how long late calls are still served while load balancers learn of it, in seconds."""
    drain_timeout_s: Annotated[NonNegative, Field(json_schema_extra={"aliases": ["graceful-termination-timeout"]})] = (
        90.0
    )
    """After that, how long running calls may take to end, in seconds."""
    tgi_metric_names: bool = False
    """Tell Prometheus the metrics under the names of Text Generation Inference, too."""
    connection_age_limit_s: NonNegative = 0.0
    """Age at which clients are told to reconnect, so that they spread over new routers, in seconds; 0 never."""
    tokenizer_thread_count: Annotated[PositiveInt, Field(json_schema_extra={"aliases": ["validation-workers"]})] = 2
    """Threads that tokenize prompts and render chat templates."""

    @property
    def listen_address(self) -> Address:
        """Where to listen, parsed."""
        return join_listen_address(self.listen, self.hostname, self.port)

    @property
    def adapters(self) -> dict[str, str]:
        """Sources of adapters by name."""
        return {name: source for name, _, source in (item.partition("=") for item in self.adapter)}

    @property
    def shard_security(self) -> ChannelSecurity:
        """How shards are reached."""
        return ChannelSecurity.of(
            ca=self.shard_tls_ca_file,
            certificate=self.shard_tls_certificate_file,
            key=self.shard_tls_key_file,
            allows_remote_plaintext=self.insecure,
            hint="--shard-tls-ca-file",
        )

    @model_validator(mode="after")
    def _check_router(self) -> Self:
        check_adapters(self.adapter)
        check_pair(self, "shard_tls_certificate_file", "shard_tls_key_file", needed="shard_tls_ca_file")
        if self.watermark_by_default and not self.watermark_key_file:
            raise ValueError("watermark_by_default needs a watermark_key_file")
        if not self.model:
            raise ValueError("no model is given; try smollm2-135m-instruct")
        check_listen_parts(self.listen, self.hostname, self.port)
        return self


class RouterSettings(RouterOnlySettings):
    """Runs a router: takes requests over gRPC, batches them and has shards execute the steps."""

    shard: Annotated[tuple[AddressText, ...], Field(min_length=1)]
    """Where a shard is reached: `host:port` or `unix:PATH`. May be repeated; each is a replica of the model."""


class TranslationSettings(ProcessSettings):
    """What concerns HTTP, in the sidecar and in whoever starts it."""

    body_size_limit: Annotated[ByteSize, Field(json_schema_extra={"aliases": ["payload-limit"]})] = ByteSize(16 * 2**20)
    """Largest body of an HTTP request, in bytes or with a unit such as `16MiB`."""
    read_timeout_s: PositiveFloat = 60.0
    """How long the request line and headers of an HTTP request may take to come, and then its body, in seconds."""
    deadline_s: PositiveFloat = 600.0
    """How long a request may take in all, waiting included, in seconds. The header `x-request-timeout-s` may ask for
    less."""
    client_batch_limit: PositiveInt = 64
    """Most prompts of one `/v1/completions` request, each of which the router gets as a request of its own."""
    embedding_pooling: Pooling | None = None
    """How `/v1/embeddings` makes a vector of hidden states, `mean` or `last`, for requests that do not say it: what the
    model was trained for. Left out, each request has to."""
    cors_allow_origin: tuple[str, ...] = ()
    """An origin whose pages may call the sidecar from a browser, or `*`. May be repeated."""
    ui: bool = True
    """Whether HTTP has a page at `/ui` to try a model in a browser."""


class ServeSettings(RouterOnlySettings, EngineSettings, TranslationSettings):
    """Runs a router and its shards together, with a REST sidecar if asked to, and restarts what dies."""

    replica_count: PositiveInt = 1
    """Number of shards, each a replica of the model. With metrics, the first shard has the port after the router's,
    the second the next, and so on."""
    rest_listen: Annotated[AddressText | None, Field(json_schema_extra={"aliases": ["rest"]})] = None
    """Starts a REST sidecar too, in a process of its own, that HTTP clients reach here: `host:port` or `unix:PATH`."""


class Multiplexing(StrEnum):
    """Whether the sidecar's generation streams share calls."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class RestSettings(TranslationSettings):
    """Runs a REST sidecar: translates HTTP to the gRPC of a router, and holds nothing itself."""

    router_address: Annotated[
        tuple[AddressText, ...], Field(min_length=1, json_schema_extra={"aliases": ["router"]})
    ] = ("127.0.0.1:50051",)
    """Where a router is reached: `host:port` or `unix:PATH`. May be repeated, then calls take turns among those that
    serve."""
    multiplexing: Multiplexing = Multiplexing.AUTO
    """Whether generation streams share calls to the router, which saves most of what a message costs. With `auto` they
    do where there is one router: shared calls are not balanced, stream by stream, among several."""
    router_tls_ca_file: str = ""
    """Roots in PEM of the routers' certificates. With it routers on TCP addresses are reached by TLS."""
    router_tls_certificate_file: str = ""
    """Certificate in PEM that the sidecar shows to routers that ask for one."""
    router_tls_key_file: str = ""
    """Private key of that certificate in PEM, not encrypted."""
    listen: AddressText = "127.0.0.1:8080"
    """Where HTTP clients reach the sidecar: `host:port` or `unix:PATH`."""
    hostname: Annotated[str | None, Field(json_schema_extra={"flag_only": True})] = None
    """Host to listen on, in place of the one in `listen`."""
    port: Annotated[NonNegativeInt | None, Field(le=65535, json_schema_extra={"flag_only": True})] = None
    """Port to listen on, in place of the one in `listen`; 0 lets the system choose."""
    exit_with_parent: bool = False
    """End when standard input closes. Set by `headrace serve` for the sidecar that it starts."""
    propagation_s: NonNegative = 3.0
    """After SIGTERM, how long late requests are still served while load balancers learn of it, in seconds."""
    drain_timeout_s: Annotated[NonNegative, Field(json_schema_extra={"aliases": ["graceful-termination-timeout"]})] = (
        90.0
    )
    """After that, how long running requests may take to end, in seconds."""

    @property
    def listen_address(self) -> Address:
        """Where to listen, parsed."""
        return join_listen_address(self.listen, self.hostname, self.port)

    @property
    def multiplexes(self) -> bool:
        """Whether generation streams share calls."""
        if self.multiplexing is Multiplexing.AUTO:
            return len(self.router_address) == 1
        return self.multiplexing is Multiplexing.ON

    @property
    def router_security(self) -> ChannelSecurity:
        """How routers are reached."""
        return ChannelSecurity.of(
            ca=self.router_tls_ca_file,
            certificate=self.router_tls_certificate_file,
            key=self.router_tls_key_file,
            allows_remote_plaintext=self.insecure,
            hint="--router-tls-ca-file",
        )

    @model_validator(mode="after")
    def _check_rest(self) -> Self:
        check_pair(self, "router_tls_certificate_file", "router_tls_key_file", needed="router_tls_ca_file")
        check_listen_parts(self.listen, self.hostname, self.port)
        return self


PROCESSES: dict[str, type[ProcessSettings]] = {
    "serve": ServeSettings,
    "router": RouterSettings,
    "shard": ShardSettings,
    "rest": RestSettings,
}
"""The settings of each command."""

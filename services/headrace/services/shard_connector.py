"""Reaches shards: waits for one to load its model, then opens its Step stream."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from headrace.contract.engine import StepEngine
from headrace.contract.errors import StartupError
from headrace.contract.vocabulary import Vocabulary
from headrace.internal.v1 import shard_service_pb2 as pb
from headrace.internal.v1.shard_service_pb2_grpc import ShardServiceStub
from headrace.services.address import Address, parse_address
from headrace.services.backoff import Backoff
from headrace.services.channel_options import SHARD_PING_TIMEOUT_S, shard_channel_options
from headrace.services.channel_tls import ChannelSecurity
from headrace.services.convert_step import description_from_proto
from headrace.services.convert_vocabulary import vocabulary_to_proto
from headrace.services.shard_channel import ShardChannel

if TYPE_CHECKING:  # the stub exists for type checkers alone
    from headrace.internal.v1.shard_service_pb2_grpc import ShardServiceAsyncStub

DESCRIBE_TIMEOUT_S = 2.0
"""A shard answers Describe at once, whatever it is doing."""

VOCABULARY_TIMEOUT_S = 30.0
"""A shard that has just lost its router may have a long step to finish first."""

RETRY_FIRST_S, RETRY_LIMIT_S = 0.05, 1.0
"""Between two looks at a shard that is not ready."""


class ShardConnector:
    """The `EngineConnector` of a deployment whose engines are shards."""

    def __init__(
        self,
        *,
        message_size_limit_bytes: int,
        vocabulary: Vocabulary | None = None,
        security: ChannelSecurity | None = None,
        ping_timeout_s: float = SHARD_PING_TIMEOUT_S,
    ) -> None:
        """Takes what shards that know grammars are told of the model's tokens; None tells them nothing.

        Without a `security` nothing but this machine is reached.
        """
        self._security = security or ChannelSecurity()
        self._vocabulary = vocabulary
        self._options = shard_channel_options(message_size_limit_bytes, ping_timeout_s)

    async def connect(self, addresses: tuple[str, ...], on_progress: Callable[[str], None]) -> StepEngine:
        """Connects the only rank of a replica and waits until it can take steps.

        Raises:
            StartupError: the shard says that it can never start, the address is
                none or may not be reached in plain text, the router's own
                certificate cannot be read, or there are several ranks.
        """
        if len(addresses) != 1:
            raise StartupError(
                f"a replica of {len(addresses)} ranks ({', '.join(addresses)}): "
                "tensor parallel groups are not supported in this release; give each replica one address"
            )
        [address] = addresses
        try:
            parsed = parse_address(address)
        except ValueError as error:
            raise StartupError(str(error)) from error
        channel = self._open_channel(parsed)
        try:
            return await self._connect(address, channel, on_progress)
        except BaseException:
            await channel.close()
            raise

    def _open_channel(self, address: Address) -> grpc.aio.Channel:
        """Returns a new channel, with the router's certificate as it is now: each connection reads it again."""
        credentials = self._security.credentials([address])
        if credentials is None:
            return grpc.aio.insecure_channel(str(address), self._options)
        return grpc.aio.secure_channel(str(address), credentials, self._options)

    async def _connect(
        self, address: str, channel: grpc.aio.Channel, on_progress: Callable[[str], None]
    ) -> ShardChannel:
        stub = ShardServiceStub(channel)
        backoff = Backoff(first_s=RETRY_FIRST_S, limit_s=RETRY_LIMIT_S)
        while True:
            try:
                described = await stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
                if described.state == pb.SHARD_STATE_FAILED:
                    raise StartupError(f"the shard at {address} cannot start: {described.detail}")
                if described.state == pb.SHARD_STATE_SERVING:
                    await self._load_vocabulary(stub, described)
                    return await _open(address, channel, stub, described)
                backoff.reset()
                on_progress(f"the shard at {address} starts: {described.detail}")
            except grpc.aio.AioRpcError as error:
                on_progress(f"waiting for the shard at {address}: {error.details()}")
            await asyncio.sleep(backoff.fail())

    async def _load_vocabulary(self, stub: "ShardServiceAsyncStub", described: pb.DescribeResponse) -> None:
        if self._vocabulary is not None and "constraint" in described.engine.supported_fields:
            await stub.LoadVocabulary(vocabulary_to_proto(self._vocabulary), timeout=VOCABULARY_TIMEOUT_S)


async def _open(
    address: str, channel: grpc.aio.Channel, stub: "ShardServiceAsyncStub", described: pb.DescribeResponse
) -> ShardChannel:
    """Opens the Step stream and waits until the shard has emptied its batch for it.

    Raises:
        grpc.aio.AioRpcError: the shard went away meanwhile.
    """
    call = stub.Step()
    try:
        await call.initial_metadata()
        if call.done():
            # gRPC reports the end of a call that never began as empty metadata.
            raise grpc.aio.AioRpcError(await call.code(), details=await call.details())
    except BaseException:
        call.cancel()
        raise
    description = description_from_proto(described.engine)
    return ShardChannel(address=address, description=description, channel=channel, call=call, stub=stub)

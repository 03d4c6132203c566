"""Adapters on the real model behind real processes: the tokens of PEFT, through loads, unloads and a killed shard."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from headrace.v1 import generate_service_pb2 as pb
from headrace.v1 import router_service_pb2 as router_pb
from headrace.v1.sampling_pb2 import SamplingParams

Serve = Callable[..., AbstractAsyncContextManager[Any]]
TOKEN_COUNT = 24
# PEFT asks Transformers for something under a name that it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@dataclass
class Adapted:
    """An adapter, and what PEFT generates with it."""

    folder: Path
    expected: dict[tuple[int, ...], tuple[int, ...]]


def generate(model: Any, prompts: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    found = {}
    for prompt in prompts:
        tokens = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=TOKEN_COUNT,
            min_new_tokens=TOKEN_COUNT,
            do_sample=False,
            pad_token_id=2,
        )
        found[prompt] = tuple(tokens[0, len(prompt) :].tolist())
    return found


@pytest.fixture(scope="module")
def prompts(greedy_examples: Any) -> list[tuple[int, ...]]:
    return [example.prompt for example in greedy_examples if 4 < len(example.prompt) < 40][:1]


@pytest.fixture(scope="module")
def adapters(
    transformers_model: PreTrainedModel, prompts: list[tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Adapted]:
    """Two adapters of different ranks, and none, by name."""
    folder = tmp_path_factory.mktemp("adapters")
    found = {"": Adapted(folder, generate(transformers_model, prompts))}
    for name, rank, targets in (("poet", 8, "all-linear"), ("clerk", 3, ["q_proj", "v_proj", "down_proj"])):
        config = LoraConfig(r=rank, lora_alpha=16, target_modules=targets, init_lora_weights=False)
        torch.manual_seed(rank)
        model = get_peft_model(transformers_model, config)
        assert isinstance(model, PeftModel)
        model.save_pretrained(folder / name, save_embedding_layers=False)
        found[name] = Adapted(folder / name, generate(model, prompts))
        model.unload()
    assert len({tokens for adapted in found.values() for tokens in adapted.expected.values()}) == 3 * len(prompts)
    return found


def request_of(prompt: tuple[int, ...], adapter: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling=SamplingParams(temperature=0.0),
        stopping=pb.StoppingRules(max_new_token_count=TOKEN_COUNT, ignore_end_of_sequence=True),
        adapter=adapter,
    )


async def tokens_of(server: Any, prompt: tuple[int, ...], adapter: str) -> tuple[int, ...]:
    call = server.generate.GenerateStream(request_of(prompt, adapter))
    return tuple([token_id async for message in call for token_id in message.delta.token_ids])


async def running(server: Any, count: int) -> None:
    """Waits until so many requests run."""
    while (await server.router.GetLoad(router_pb.GetLoadRequest())).load.running_count < count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_adapters_through_all_that_can_happen_to_them(
    serve: Serve, adapters: dict[str, Adapted], prompts: list[tuple[int, ...]]
) -> None:
    flags = ("--dtype=float32", "--thread-count=2", "--block-count=256", f"--adapter=poet={adapters['poet'].folder}")
    async with serve("serve", *flags) as server:

        async def check(*names: str, meanwhile: Callable[[], Any] | None = None) -> None:
            jobs = [(name, prompt) for name in names for prompt in prompts]
            streams = [asyncio.ensure_future(tokens_of(server, prompt, name)) for name, prompt in jobs]
            if meanwhile is not None:
                await meanwhile()
            for (name, prompt), tokens in zip(jobs, await asyncio.gather(*streams), strict=True):
                assert tokens == adapters[name].expected[prompt]

        async def load_clerk() -> None:
            order = router_pb.LoadAdapterRequest(name="clerk", source=str(adapters["clerk"].folder))
            assert (await server.router.LoadAdapter(order)).adapter.rank == 3

        async def kill() -> None:
            await running(server, 2)
            (shard,) = server.program.children()
            os.kill(shard, signal.SIGKILL)

        async def unload_poet() -> None:
            await running(server, 2)
            await server.router.UnloadAdapter(router_pb.UnloadAdapterRequest(name="poet"))

        await check("", "poet", meanwhile=load_clerk)
        await check("", "poet", "clerk", meanwhile=kill)
        await check("poet", "clerk", meanwhile=unload_poet)
        with pytest.raises(grpc.aio.AioRpcError, match="no adapter 'poet' is loaded") as caught:
            await tokens_of(server, prompts[0], "poet")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await check("", "clerk")
        listed = (await server.router.ListAdapters(router_pb.ListAdaptersRequest())).adapters
        assert [adapter.name for adapter in listed] == ["clerk"]

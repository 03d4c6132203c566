"""Measures what speculation gains where texts repeat and costs where they do not, on one server, in turns."""

import argparse
import asyncio
import json
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.one_server import create_parser, measure_on_server
from harness.spread import Spread, paired_ratios
from safetensors import safe_open
from safetensors.torch import save_file

from headrace.client.aio import AsyncClient
from headrace.client.chat import Message
from headrace.client.options import GenerateOptions

TEXT = (
    "A rigid frame holds the four wheels. Each wheel turns on an axle of steel, and each axle rests in two bearings. "
    "The front wheels are steered by a lever of ash wood; the rear wheels are driven by a chain. Oil the chain once a "
    "week, and the bearings once a month. Before a journey, look at the frame, the lever and every spoke."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked, by every stream alike but for the seed."""

    name: str
    prompt: str
    temperature: float
    is_chat: bool = False
    """Whether the prompt is a user's message."""


WORKLOADS = (
    Workload(
        name="is asked to repeat", prompt=f"Repeat this text word for word:\n\n{TEXT}", temperature=0.0, is_chat=True
    ),
    Workload(name="repeats its prompt", prompt=f"{TEXT}\n\n{TEXT}\n\n", temperature=0.0),
    Workload(
        name="free text", prompt="The keeper of the lighthouse had not slept since the storm began.", temperature=1.0
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What some streams of a workload brought."""

    rate: float
    """Generated tokens per second, from when all have their first token until the first has its last."""
    accepted_share: float
    """Of all tokens, those that were guessed."""
    token_ids: tuple[tuple[int, ...], ...]


async def run(client: AsyncClient, workload: Workload, *, streams: int, tokens: int, speculation: bool) -> Run:
    """Runs all streams of a workload at once."""
    times_s: list[list[float]] = [[] for _ in range(streams)]
    token_ids: list[list[int]] = [[] for _ in range(streams)]
    accepted_counts: list[int] = []
    salt = secrets.token_hex(8)

    async def follow(index: int) -> None:
        options = GenerateOptions(
            temperature=workload.temperature,
            seed=index,
            max_new_token_count=tokens,
            ignore_end_of_sequence=True,
            cache_salt=salt,
        )
        if not speculation:
            options["speculation"] = False
        if workload.is_chat:
            stream = client.chat_stream([Message(role="user", content=workload.prompt)], **options)
        else:
            stream = client.stream(workload.prompt, **options)
        async with stream:
            async for delta in stream:
                times_s[index].extend([time.perf_counter()] * len(delta.token_ids))
                token_ids[index].extend(delta.token_ids)
        accepted_counts.append((await stream.result()).usage.accepted_token_count)

    async with asyncio.TaskGroup() as tasks:
        for index in range(streams):
            tasks.create_task(follow(index))
    begin_s, end_s = max(times[0] for times in times_s), min(times[-1] for times in times_s)
    count = sum(begin_s < moment <= end_s for times in times_s for moment in times)
    return Run(
        rate=count / (end_s - begin_s),
        accepted_share=sum(accepted_counts) / (streams * tokens),
        token_ids=tuple(map(tuple, token_ids)),
    )


async def measure(client: AsyncClient, arguments: argparse.Namespace) -> None:
    """Prints a line for each workload and number of streams."""
    print("| workload | streams | tokens/s without | with | ratio | guessed tokens |\n|---|---|---|---|---|---|")
    for workload in WORKLOADS:
        for streams in map(int, arguments.streams.split(",")):
            rates: dict[bool, list[float]] = {False: [], True: []}
            shares: list[float] = []
            for number in range(arguments.rounds + 1):
                found: dict[bool, Run] = {}
                for speculation in (False, True) if number % 2 else (True, False):
                    found[speculation] = await run(
                        client, workload, streams=streams, tokens=arguments.tokens, speculation=speculation
                    )
                assert found[False].token_ids == found[True].token_ids, "speculation changed an answer"
                if number > 0:  # the first round warms up
                    shares.append(found[True].accepted_share)
                    for speculation, result in found.items():
                        rates[speculation].append(result.rate)
            plain, guessed = Spread.of(rates[False]), Spread.of(rates[True])
            ratio = paired_ratios(rates[True], rates[False])
            print(
                f"| {workload.name} | {streams} | {plain.median:.0f} | {guessed.median:.0f}"
                f" | {ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f}) | {Spread.of(shares).median:.0%} |",
                flush=True,
            )


def write_first_layers(model: Path, layer_count: int, target: Path) -> None:
    """Makes a draft model of a model's own first layers, its last norm and its head, in a folder."""
    shutil.copytree(model, target, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layer_count}))
    kept = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                head, found, rest = name.partition("model.layers.")
                if not found or head or int(rest.partition(".")[0]) < layer_count:
                    kept[name] = tensors.get_tensor(name)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = create_parser(__doc__, token_count=160)
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--draft-layers", type=int, default=0, help="guess with so many first layers of a model folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        speculation = ["--speculation=ngram"]
        if arguments.draft_layers:
            draft = Path(folder) / "draft"
            write_first_layers(Path(arguments.model), arguments.draft_layers, draft)
            speculation = ["--speculation=draft", f"--draft-model={draft}"]
        asyncio.run(measure_on_server(measure, arguments, *speculation))


if __name__ == "__main__":
    main()

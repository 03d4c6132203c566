"""`headrace chat` as a person meets it: a process, on pipes and on a terminal."""

import asyncio
import contextlib
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

import headrace.client
from headrace.client import Message
from headrace.client.chat_cli import main
from headrace.v1 import router_service_pb2

# The shapes of conftest's fixtures; test files cannot import from it.
Server = Any
Script = Any
Fail = Any

# A session leader's first terminal becomes its controlling one: only then is Ctrl-C a signal.
ON_TERMINAL = 'terminal=$1; shift; exec "$@" <"$terminal" >"$terminal" 2>&1'


@pytest.fixture(autouse=True)
def one_model(script: Script) -> None:
    script.answers["GetModel"] = router_service_pb2.GetModelResponse(model=router_service_pb2.Model(name="tiny"))


async def start(server: Server, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headrace.client.chat_cli",
        f"--target={server.target}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


class Terminal:
    """The person's end of a pseudo-terminal."""

    def __init__(self, process: asyncio.subprocess.Process, descriptor: int, screen: asyncio.StreamReader) -> None:
        self.process = process
        self._descriptor = descriptor
        self._screen = screen

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def wait_for(self, text: str) -> None:
        await self._screen.readuntil(text.encode())

    async def interrupt_until(self, text: str) -> None:
        """Presses Ctrl-C like a person who is not heard: `input` misses a signal just before it starts to wait."""
        while True:
            self.type("\x03")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    return await self.wait_for(text)


@contextlib.asynccontextmanager
async def terminal(server: Server, *arguments: str) -> AsyncIterator[Terminal]:
    person, program = pty.openpty()
    screen = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(screen), os.fdopen(person, "rb", buffering=0)
    )
    command = [sys.executable, "-m", "headrace.client.chat_cli", f"--target={server.target}", *arguments]
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        ON_TERMINAL,
        "sh",
        os.ttyname(program),
        *command,
        start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )
    try:
        yield Terminal(process, person, screen)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        transport.close()
        os.close(program)


async def test_one_shot_shows_tokens_as_they_come_and_their_speed_apart(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    process = await start(server, "--prompt", "Why?", "--system", "Be brief.", "--seed=7", "--max-new-token-count=4")
    assert process.stdout is not None
    assert await process.stdout.readexactly(5) == b"Once "
    script.gate.set()
    out, err = await process.communicate()
    assert process.returncode == 0
    assert out == b"upon a time\n"
    assert re.fullmatch(
        r"time to first token \d+\.\d{3} s · \d+\.\d tokens/s · 4 tokens · 2 of 3 prompt tokens cached\n", err.decode()
    )
    (request,) = script.requests
    assert [(turn.role, turn.content[0].text) for turn in request.chat.messages] == [
        ("system", "Be brief."),
        ("user", "Why?"),
    ]
    assert request.sampling.seed == 7
    assert not request.sampling.HasField("temperature")
    assert request.stopping.max_new_token_count == 4


async def test_a_single_token_has_no_rate(server: Server, script: Script) -> None:
    script.words = ("Yes",)
    process = await start(server, "--prompt", "Well?")
    _, err = await process.communicate()
    assert re.fullmatch(r"time to first token \d+\.\d{3} s · 1 token · 2 of 3 prompt tokens cached\n", err.decode())


async def test_reasoning_is_shown_apart(server: Server, script: Script) -> None:
    script.thoughts, script.words = ("Hm, ", "so"), ("Four", ".")
    process = await start(server, "--prompt", "2 + 2?")
    out, _ = await process.communicate()
    assert out == b"(Hm, so)\n\nFour.\n"


async def test_lines_from_a_pipe_are_a_conversation(server: Server, script: Script) -> None:
    process = await start(server, "--temperature=0")
    out, err = await process.communicate(b"first\n\n/stats\nsecond\n/reset\nthird\n/fly\n/help\n")
    assert process.returncode == 0
    assert err.decode().startswith(f"tiny at {server.target}.")
    text = out.decode()
    assert text.count("Once upon a time\n") == 3
    assert re.search(r"4 tokens · 2 of 3 prompt tokens cached\n", text)
    assert "there is no command /fly\n" in text
    assert text.count("/reset  forgets the conversation") == 2
    _, *turns = script.requests
    assert [[message.content[0].text for message in turn.chat.messages] for turn in turns] == [
        ["first"],
        ["first", "Once upon a time", "second"],
        ["third"],
    ]
    assert all(turn.sampling.HasField("temperature") for turn in turns)


async def test_a_failed_answer_is_explained_and_forgotten(server: Server, script: Script, fail: Fail) -> None:
    process = await start(server, "--system", "Be brief.")
    assert process.stderr is not None
    await process.stderr.readline()
    script.failures.append(fail(code=grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST", message="too long"))
    out, _ = await process.communicate(b"first\nsecond\n")
    assert out.decode() == "\ntoo long\nOnce upon a time\n\n"
    assert [message.content[0].text for message in script.requests[-1].chat.messages] == ["Be brief.", "second"]


async def test_ctrl_c_cancels_the_answer_and_keeps_the_session(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with asyncio.timeout(20), terminal(server) as person:
        await person.wait_for("> ")
        person.type("first\n")
        await person.wait_for("Once ")
        person.type("\x03")
        await person.wait_for("(cancelled)")
        await script.cancelled.wait()
        await person.wait_for("> ")
        person.type("/stats\n")
        await person.wait_for("the last answer was cancelled")
        script.gate.set()
        person.type("second\n")
        await person.wait_for("Once upon a time")
        await person.wait_for("> ")
        # At the prompt it only clears the line.
        person.type("half a li")
        await person.wait_for("half a li")
        await person.interrupt_until("(Ctrl-D ends)")
        await person.wait_for("> ")
        person.type("\x04")
        assert await person.process.wait() == 0
    assert [message.content[0].text for message in script.requests[-1].chat.messages] == ["first", "Once ", "second"]


async def test_ctrl_c_before_any_text_leaves_nothing_behind(server: Server, script: Script) -> None:
    script.words = ("", "late")
    script.gate = asyncio.Event()
    async with asyncio.timeout(20), terminal(server) as person:
        await person.wait_for("> ")
        person.type("first\n")
        await script.at_gate.wait()
        person.type("\x03")
        await person.wait_for("(cancelled)")
        await person.wait_for("> ")
        script.gate.set()
        person.type("second\n")
        await person.wait_for("late")
        await person.wait_for("> ")
        person.type("\x04")
        assert await person.process.wait() == 0
    assert [message.content[0].text for message in script.requests[-1].chat.messages] == ["second"]


async def test_ctrl_c_ends_one_shot(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    async with asyncio.timeout(20), terminal(server, "--prompt", "Why?") as person:
        await person.wait_for("Once ")
        person.type("\x03")
        assert await person.process.wait() == 130
        await script.cancelled.wait()


async def test_a_closed_pipe_is_no_traceback(server: Server, script: Script) -> None:
    script.gate = asyncio.Event()
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headrace.client.chat_cli",
        f"--target={server.target}",
        "--prompt=Why?",
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 5) == b"Once "
    os.close(reader)
    script.gate.set()
    _, err = await process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_a_server_that_is_not_there_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.client.channel.SERVICE_CONFIG_JSON", "{}")
    assert main(["--target=127.0.0.1:1", "--prompt=Why?"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headrace chat: cannot reach a server at 127.0.0.1:1: ")
    assert captured.err.endswith("Start one with `headrace serve MODEL`, or name another with --target.\n")


async def test_a_full_server_and_a_deadline_are_explained(
    server: Server, script: Script, fail: Fail, capsys: pytest.CaptureFixture[str]
) -> None:
    script.failures.append(
        fail(
            code=grpc.StatusCode.RESOURCE_EXHAUSTED,
            reason="QUEUE_FULL",
            message="8 of 8 wait",
            retry_after_s=2.0,
            pushback_ms=-1,
        )
    )
    assert await asyncio.to_thread(main, [f"--target={server.target}", "--prompt=Why?"]) == 1
    assert capsys.readouterr().err == "headrace chat: 8 of 8 wait (try again in 2.0 s)\n"
    script.gate = asyncio.Event()
    assert await asyncio.to_thread(main, [f"--target={server.target}", "--prompt=Why?", "--deadline-s=0.2"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "Once "
    assert captured.err == "headrace chat: the answer took longer than the deadline; --deadline-s sets another\n"


async def test_the_example_of_the_package_runs_as_it_stands(server: Server, script: Script) -> None:
    documentation = headrace.client.__doc__
    assert documentation is not None
    lines = [line for line in documentation.splitlines() if line.startswith("    ") or not line]
    example = "\n".join(line.removeprefix("    ") for line in lines)
    assert "127.0.0.1:50051" in example
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        example.replace("127.0.0.1:50051", server.target),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"Once upon a time (4 tokens)\n")
    assert script.requests[0].chat.messages[0] == _wire(Message("user", "Why is the sky blue?"))


def _wire(message: Message) -> object:
    return headrace.client.calls.chat([message], {}).request.chat.messages[0]

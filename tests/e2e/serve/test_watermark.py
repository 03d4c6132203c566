"""A watermark in what the real model writes: found with the key, by the command too, and without it not."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from headrace.client import InvalidRequest, Watermark, detect_watermark
from headrace.client.aio import AsyncClient
from headrace.client.watermark_cli import main

Serve = Callable[..., AbstractAsyncContextManager[Any]]
SECRETS = {"web": "correct horse battery staple", "batch": "incorrect donkey charger nail"}
PROMPTS = ("Tell me about rivers.", "Write a letter to a friend.", "How is bread made?")


async def test_the_mark_is_found_with_its_key_alone(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("".join(f"{name} {secret}\n" for name, secret in SECRETS.items()))
    flags = ("--block-count=512", f"--watermark-key-file={key_file}", "--watermark-delta=4")
    async with serve("serve", *flags) as server, AsyncClient(server.address) as client:
        options: dict[str, Any] = {"temperature": 1.0, "max_new_token_count": 120, "ignore_end_of_sequence": True}
        marks = (None, Watermark(), Watermark(key="batch", gamma=0.5, delta=5.0))
        answers = await asyncio.gather(
            *(
                client.generate(prompt, seed=seed, watermark=mark, **options)
                for mark in marks
                for seed, prompt in enumerate(PROMPTS)
            )
        )
        plain, web, batch = (answers[start : start + 3] for start in (0, 3, 6))
        with pytest.raises(InvalidRequest, match=r"watermark\.key: must be one of web, batch"):
            await client.generate("x", watermark=Watermark(key="mail"))
        assert "watermark" in (await client.get_model()).supported_fields
        text = tmp_path / "text"
        text.write_text(web[0].text)
        command = ["detect", str(text), f"--key-file={key_file}", f"--target={server.address}", "--json"]
        assert await asyncio.to_thread(main, command) == 0
        assert json.loads(capsys.readouterr().out)["z_score"] > 4
    for answer in web:
        assert detect_watermark(answer.token_ids, SECRETS["web"]).z_score > 5
        assert detect_watermark(answer.token_ids, SECRETS["batch"]).z_score < 4
    for answer in batch:
        assert detect_watermark(answer.token_ids, SECRETS["batch"], gamma=0.5).z_score > 4
        assert detect_watermark(answer.token_ids, SECRETS["web"]).z_score < 4
    for answer in plain:
        assert all(detect_watermark(answer.token_ids, secret).z_score < 4 for secret in SECRETS.values())

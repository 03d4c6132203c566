"""The detector counts as the paper does, and is sure of nothing that it did not see."""

import json
import math
import random
from pathlib import Path

import pytest

from headrace.client import detect_watermark
from headrace.client.watermark_cli import main
from headrace.contract.errors import StartupError
from headrace.contract.watermark import is_green, key_of, parse_watermark_keys, threshold_of

SECRET = "correct horse battery staple"


def marked(count: int, *, seed: int = 1, gamma: float = 0.25) -> list[int]:
    """Tokens that are all on the green list, drawn from a small vocabulary."""
    draws = random.Random(seed)
    token_ids = [0]
    while len(token_ids) < count:
        token_id = draws.randrange(50_000)
        if is_green(token_id, previous_token_id=token_ids[-1], key=key_of(SECRET), threshold=threshold_of(gamma)):
            token_ids.append(token_id)
    return token_ids


def test_a_text_of_green_tokens_alone_has_the_greatest_z() -> None:
    evidence = detect_watermark(marked(101), SECRET)
    assert (evidence.token_count, evidence.green_count) == (100, 100)
    assert evidence.z_score == pytest.approx((100 - 25) / math.sqrt(100 * 0.25 * 0.75))
    assert evidence.p_value < 1e-60


def test_other_keys_and_other_texts_show_nothing() -> None:
    draws = random.Random(3)
    assert abs(detect_watermark(marked(2000), "another secret of length").z_score) < 4
    assert abs(detect_watermark([draws.randrange(50_000) for _ in range(2000)], SECRET).z_score) < 4


def test_scores_of_unmarked_texts_are_normally_distributed() -> None:
    draws = random.Random(4)
    scores = [
        detect_watermark([draws.randrange(50_000) for _ in range(200)], SECRET, gamma=0.5).z_score for _ in range(200)
    ]
    mean = sum(scores) / len(scores)
    assert abs(mean) < 5 / math.sqrt(len(scores))
    assert 0.7 < sum((score - mean) ** 2 for score in scores) / len(scores) < 1.4


def test_a_repeated_pair_counts_once() -> None:
    token_ids = marked(3)
    assert detect_watermark(token_ids * 50, SECRET).token_count == 3


@pytest.mark.parametrize("token_ids", [[], [7]])
def test_too_short_a_text_is_no_evidence(token_ids: list[int]) -> None:
    evidence = detect_watermark(token_ids, SECRET)
    assert (evidence.token_count, evidence.z_score, evidence.p_value) == (0, 0.0, 1.0)


@pytest.mark.parametrize("gamma", [0.0, 1.0, math.nan])
def test_gamma_is_a_share(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be in"):
        detect_watermark([1, 2], SECRET, gamma=gamma)


def test_keys_are_read_by_name() -> None:
    keys = parse_watermark_keys(f"# for the web\nweb {SECRET}\n\n  batch   another secret of length  \n")
    assert keys == {"web": key_of(SECRET), "batch": key_of("another secret of length")}


@pytest.mark.parametrize("text", ["web short", "web", f"web {SECRET}\nweb {SECRET}", f"{'n' * 65} {SECRET}"])
def test_a_wrong_line_is_told_by_its_number_and_not_by_its_secret(text: str) -> None:
    with pytest.raises(StartupError, match=r"line \d") as caught:
        parse_watermark_keys(text)
    assert SECRET not in caught.value.message
    assert "short" not in caught.value.message.replace("short enough", "")


def test_the_command_needs_no_server_for_token_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, text = tmp_path / "keys", tmp_path / "text"
    keys.write_text(f"other {'x' * 20}\nweb {SECRET}\n")
    text.write_text(" ".join(map(str, marked(101))))
    command = ["detect", str(text), "--token-ids", f"--key-file={keys}"]
    assert main([*command, "--key=web", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["green_count"] == 100
    assert main(command) == 0
    assert "of 100 tokens are on the green list" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--key=missing"])
    assert "has no key 'missing'" in capsys.readouterr().err
    assert main(["detect", "--key-file=/nowhere"]) == 2
    assert main([*command, "--gamma=3"]) == 2

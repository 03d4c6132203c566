"""Reasoning is told apart from the answer, whole and in pieces."""

import pytest

from headrace.router.chat_output.reasoning import ReasoningSplitter


def split(*pieces: str, starts_inside: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter("<think>", "</think>", starts_inside=starts_inside)
    found = [*(splitter.push(piece) for piece in pieces), splitter.flush()]
    return "".join(reasoning for reasoning, _ in found), "".join(answer for _, answer in found)


CASES = [
    ("<think>\nhm,\n\nso\n</think>\n\nFour.\n", False, ("hm,\n\nso", "Four.\n")),
    ("\n<think></think>Four.", False, ("", "Four.")),
    ("<think>\n\n</think>\n\nFour.", False, ("", "Four.")),
    ("Four. <think>no</think>", False, ("", "Four. <think>no</think>")),
    (" Four.", False, ("", " Four.")),
    ("<thin air>", False, ("", "<thin air>")),
    ("<think", False, ("", "<think")),
    ("", False, ("", "")),
    ("<think>a </th> b</think>c</think>d", False, ("a </th> b", "c</think>d")),
    ("\nhm\n</think>\n\nFour.", True, ("hm", "Four.")),
    ("hm </think", True, ("hm </think", "")),
    ("hm, a < b\n", True, ("hm, a < b\n", "")),
    ("<think>hm", False, ("hm", "")),
    ("</think>Four.", True, ("", "Four.")),
]


@pytest.mark.parametrize(("written", "starts_inside", "expected"), CASES)
def test_reasoning_is_split_off(written: str, starts_inside: bool, expected: tuple[str, str]) -> None:
    assert split(written, starts_inside=starts_inside) == expected
    assert split(*written, starts_inside=starts_inside) == expected


def test_reasoning_is_told_while_it_goes_on() -> None:
    splitter = ReasoningSplitter("<think>", "</think>", starts_inside=False)
    assert splitter.push("<think>hm ") == ("hm", "")
    assert splitter.push("so") == (" so", "")

"""Tool calls in the notations of the common families, whole and in pieces, well-formed and not."""

import json

import pytest

from headrace.contract.chat_output import ToolFormat
from headrace.router.chat_output import deepseek
from headrace.router.chat_output.formats import call_parser

TOOLS = frozenset({"look", "wait"})
HERMES, LLAMA3, MISTRAL = ToolFormat.HERMES, ToolFormat.LLAMA3, ToolFormat.MISTRAL
DEEPSEEK = ToolFormat.DEEPSEEK
CALLS, CALL, SEP, CALL_END, CALLS_END = (
    deepseek.BEGIN, deepseek.CALL_BEGIN, deepseek.SEPARATOR, deepseek.CALL_END, deepseek.END,
)  # fmt: skip
LOOK = ("look", '{"at": "x"}')
WAIT = ("wait", "{}")

Found = tuple[str, list[tuple[str, str]]]


def parsed(tool_format: ToolFormat, *pieces: str, call_limit: int | None = None) -> Found:
    parser = call_parser(tool_format, TOOLS, call_limit)
    found = [*(parser.push(piece) for piece in pieces), parser.flush()]
    text = "".join(piece.text for piece in found)
    return text, [(call.name, call.arguments_json) for piece in found for call in piece.calls]


WELL_FORMED = [
    (HERMES, '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>', "", [LOOK]),
    (HERMES, '<tool_call>{"arguments":{"at": "x"},"name":"look"}</tool_call>', "", [LOOK]),
    (
        HERMES,
        (
            'I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>\n'
        ),
        "I look.",
        [LOOK, WAIT],
    ),
    (HERMES, '<tool_call>{"name": "wait"}</tool_call>\n\nDone.\n', "\n\nDone.\n", [WAIT]),
    (HERMES, '<tool_call>{"name": "wait", "arguments": null}', "", [WAIT]),
    (HERMES, '<tool_call>{"name": "wait"}</tool_', "", [WAIT]),
    (HERMES, '<tool_call>{"name": "wait"}{"name": "wait"}</tool_call>', "", [WAIT, WAIT]),
    (HERMES, '<tool_call>{"name": "wait"}<tool_call>{"name": "wait"}', "", [WAIT, WAIT]),
    (HERMES, '<tool_call>{"name": "not given"}</tool_call>', "", [("not given", "{}")]),
    (LLAMA3, '{"name": "look", "parameters": {"at": "x"}}', "", [LOOK]),
    (LLAMA3, '\n{"type": "function", "name": "look", "parameters": {"at": "x"}}', "", [LOOK]),
    (LLAMA3, '<|python_tag|>{"name": "look", "parameters": {"at": "x"}}', "", [LOOK]),
    (LLAMA3, 'I look. <|python_tag|>{"name": "look", "parameters": {"at": "x"}}', "I look.", [LOOK]),
    (LLAMA3, '{"name": "look", "parameters": {"at": "x"}}; {"name": "wait", "parameters": {}}', "", [LOOK, WAIT]),
    (LLAMA3, '{"name": "wait", "arguments": {}};', "", [WAIT]),
    (MISTRAL, '[TOOL_CALLS][{"name": "look", "arguments": {"at": "x"}}]', "", [LOOK]),
    (
        MISTRAL,
        'Well. [TOOL_CALLS] [{"name": "look", "arguments": {"at": "x"}}, {"name": "wait", "arguments": {}}]',
        "Well.",
        [LOOK, WAIT],
    ),
    (MISTRAL, '[TOOL_CALLS][{"name": "wait", "id": "abcdefghi"}', "", [WAIT]),
    (MISTRAL, '[TOOL_CALLS]look[ARGS]{"at": "x"}[TOOL_CALLS]wait[ARGS]{}', "", [LOOK, WAIT]),
    (MISTRAL, '[TOOL_CALLS]look[CALL_ID]VvvODy9mT[ARGS]{"at": "x"}', "", [LOOK]),
    (MISTRAL, '[TOOL_CALLS]look {"at": "x"}', "", [LOOK]),
    (
        DEEPSEEK,
        (
            f'I look.\n{CALLS}{CALL}function{SEP}look\n```json\n{{"at": "x"}}\n```{CALL_END}\n'
            f"{CALL}function{SEP}wait\n```json\n{{}}\n```{CALL_END}{CALLS_END}"
        ),
        "I look.",
        [LOOK, WAIT],
    ),
    (
        DEEPSEEK,
        f'{CALLS}{CALL}look{SEP}{{"at": "x"}}{CALL_END}{CALL}wait{SEP}{{}}{CALL_END}{CALLS_END}',
        "",
        [LOOK, WAIT],
    ),
    (DEEPSEEK, f'{CALL}function{SEP}look\n```\n{{"at": "x"}}\n``', "", [LOOK]),
    (DEEPSEEK, f"{CALLS}{CALL}function{SEP}{{}}{CALL_END[:9]}", "", [("function", "{}")]),
    (DEEPSEEK, f"{CALL}wait{SEP}{{}}{CALL_END}{CALLS_END}\n\nDone.", "\n\nDone.", [WAIT]),
]


@pytest.mark.parametrize(("tool_format", "written", "text", "calls"), WELL_FORMED)
def test_calls_are_taken_out_of_the_text(
    tool_format: ToolFormat, written: str, text: str, calls: list[tuple[str, str]]
) -> None:
    assert parsed(tool_format, written) == (text, calls)
    assert parsed(tool_format, *written) == (text, calls)


NO_CALLS = [
    (HERMES, ""),
    (HERMES, "Just text.\n "),
    (HERMES, "a < b, <tool, <tool_call"),
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call></tool_call>"),
    (HERMES, "<tool_call>look(at=1)</tool_call> and on"),
    (HERMES, '<tool_call>{"name": "look", "arguments": {"at": '),
    (HERMES, '<tool_call>{"name": "look", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    (HERMES, "<tool_call>{'name': 'look'}</tool_call>"),
    (HERMES, '<tool_call>{"name": "look", "arguments": {"at": NaN}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "look", "arguments": {"at": 1e999}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (HERMES, "<tool_call>" + '{"a":' * 5000 + "1" + "}" * 5000),
    (HERMES, '{"name": "look", "parameters": {}}'),
    (LLAMA3, '{"name": "Ada", "parameters": {}}'),
    (LLAMA3, '{"name": "look"}'),
    (LLAMA3, '{"look": {}} is how it is written'),
    (LLAMA3, 'Here: {"name": "look", "parameters": {}}'),
    (LLAMA3, '<|python_tag|>look.call(at="x")'),
    (LLAMA3, " \n"),
    (LLAMA3, "<|python_"),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL, "[TOOL_CALLS] [1, 2]"),
    (MISTRAL, "[TOOL_CALLS]no name {}"),
    (MISTRAL, "[TOOL_CALLS]look[ARGS]"),
    (MISTRAL, "[TOOL_CALLS]look[ARGS]{'at': 1}"),
    (MISTRAL, "[TOOL_CALLS]" + "a" * 300 + "{}"),
    (MISTRAL, "[TOOL"),
    (DEEPSEEK, CALLS),
    (DEEPSEEK, f"{CALLS}{CALLS_END}"),
    (DEEPSEEK, f"{CALLS}{CALL}{CALL_END}{CALLS_END}"),
    (DEEPSEEK, f"{CALLS}look{SEP}{{}}"),
    (DEEPSEEK, f"{CALLS}{CALL}look up{SEP}{{}}{CALL_END}"),
    (DEEPSEEK, f'{CALL}look{SEP}{{"at": {CALL_END}'),
    (DEEPSEEK, f"{CALL}look{SEP}[1]{CALL_END} and so on"),
    (DEEPSEEK, f"a {CALL_END}{CALLS_END} b"),
    (DEEPSEEK, CALL + "a" * 300 + "{}"),
    (DEEPSEEK, CALLS[:7]),
]


@pytest.mark.parametrize(("tool_format", "written"), NO_CALLS)
def test_what_is_no_call_stays_to_the_letter(tool_format: ToolFormat, written: str) -> None:
    assert parsed(tool_format, written) == (written, [])
    assert parsed(tool_format, *written) == (written, [])


@pytest.mark.parametrize(
    ("tool_format", "bad", "good"),
    [
        (HERMES, "<tool_call>look()</tool_call>", '\n<tool_call>{"name": "wait"}</tool_call>'),
        (HERMES, '<tool_call>{"name": 1}', '\n<tool_call>{"name": "wait"}</tool_call>'),
        (LLAMA3, '{"name": "Ada", "parameters": {}}', ' <|python_tag|>{"name": "wait", "parameters": {}}'),
        (MISTRAL, "[TOOL_CALLS] oh", ' [TOOL_CALLS] [{"name": "wait"}]'),
        (MISTRAL, "[TOOL_CALLS][oh]", "[TOOL_CALLS]wait[ARGS]{}"),
        (DEEPSEEK, f"{CALLS}{CALL}oh my{SEP}{{}}", f"{CALL}wait{SEP}{{}}{CALL_END}{CALLS_END}"),
    ],
)
def test_a_call_is_found_behind_one_that_went_wrong(tool_format: ToolFormat, bad: str, good: str) -> None:
    assert parsed(tool_format, bad + good) == (bad, [WAIT])
    assert parsed(tool_format, *(bad + good)) == (bad, [WAIT])


def test_what_follows_calls_and_is_none_is_text() -> None:
    assert parsed(HERMES, '<tool_call>{"name": "wait"} and</tool_call>') == (" and</tool_call>", [WAIT])
    assert parsed(LLAMA3, '{"name": "wait", "parameters": {}} is the call') == (" is the call", [WAIT])
    assert parsed(MISTRAL, "[TOOL_CALLS]wait[ARGS]{} yes") == (" yes", [WAIT])
    assert parsed(DEEPSEEK, f"{CALL}wait{SEP}{{}} `yes`") == (" `yes`", [WAIT])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"at": "</tool_call>"}',
        '{"at": "a \\"quoted\\" } brace {"}',
        '{"at": "\\\\"}',
        '{"at": 1.10, "n": 123456789012345678901234567890, "u": "\\u00e9é"}',
        '{"deep": [{"a": [[]]}], "none": null}',
    ],
)
def test_arguments_arrive_as_they_were_written(arguments: str) -> None:
    written = f'<tool_call>{{"name": "look", "arguments": {arguments} }}</tool_call>'
    assert parsed(HERMES, *written) == ("", [("look", arguments)])
    json.loads(arguments)


def test_arguments_written_as_a_string_are_read() -> None:
    written = json.dumps({"name": "look", "arguments": json.dumps({"at": "x"})})
    assert parsed(HERMES, f"<tool_call>{written}</tool_call>") == ("", [LOOK])


def test_line_breaks_in_arguments_are_made_good() -> None:
    written = '<tool_call>{"name": "look", "arguments": {"at": "one\ntwo\t"}}</tool_call>'
    [(_, arguments)] = parsed(HERMES, written)[1]
    assert json.loads(arguments) == {"at": "one\ntwo\t"}


@pytest.mark.parametrize(("tool_format", "written", "text", "calls"), WELL_FORMED)
def test_nothing_is_read_behind_the_only_call_that_is_allowed(
    tool_format: ToolFormat, written: str, text: str, calls: list[tuple[str, str]]
) -> None:
    before = "" if text.startswith("\n") else text
    assert parsed(tool_format, written, call_limit=1) == (before, calls[:1])
    assert parsed(tool_format, *written, call_limit=1) == (before, calls[:1])


def test_a_call_is_told_as_soon_as_its_last_brace_is_there() -> None:
    parser = call_parser(HERMES, TOOLS, None)
    assert parser.push('Now <tool_call>{"name": "wait"').text == "Now"
    assert [call.name for call in parser.push("}").calls] == ["wait"]

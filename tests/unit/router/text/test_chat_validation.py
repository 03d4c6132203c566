"""What a conversation may ask of tools, and of which models."""

from dataclasses import replace

import pytest

from headrace.contract.chat_output import ChatOutput, ToolFormat
from headrace.contract.errors import FeatureUnsupported, InvalidRequest
from headrace.contract.generation import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    GenerationRequest,
    Tool,
    ToolChoiceMode,
)
from headrace.contract.sampling import StoppingOptions
from headrace.router.model_card import ModelCard
from headrace.router.request_grammars import Hold
from headrace.router.validation import RequestLimits, Validator

CARD = ModelCard(
    name="m",
    architecture="llama",
    context_token_count=100,
    vocabulary_size=1000,
    end_of_sequence_token_ids=(2,),
    chat_template="{{ tools }}{{ messages }}",
    takes_tools=True,
    tool_format=ToolFormat.HERMES,
)
CHAT_FIELDS = {"chat", "chat.tools", "chat.parallel_tool_calls", "chat.tool_choice"}
LOOK = Tool(name="look", description="", parameters={"type": "object"})
WAIT = Tool(name="wait", description="", parameters={})
AUTO, NONE, REQUIRED, NAMED = ToolChoiceMode


def validator(card: ModelCard = CARD, fields: frozenset[str] = frozenset({"constraint"})) -> Validator:
    return Validator(card, RequestLimits(context_token_count=100, prompt_token_count=90), fields)


def asking(*tools: Tool, choice: ToolChoiceMode | None = None, name: str = "", **values: object) -> GenerationRequest:
    chat = ChatPrompt(
        messages=(ChatMessage(role="user", content="hi"),), tools=tools, tool_choice=choice, tool_choice_name=name
    )
    return GenerationRequest(prompt=replace(chat, **values))


WRONG = [
    (asking(choice=REQUIRED), "chat.tool_choice", "asks for a call and needs at least one tool"),
    (asking(LOOK, choice=NAMED, name="leap"), "chat.tool_choice.name", "must name one of the tools, is 'leap'"),
    (asking(LOOK, choice=NAMED), "chat.tool_choice.name", "must name one of the tools, is ''"),
    (asking(LOOK, choice=AUTO, name="look"), "chat.tool_choice.name", "must be empty unless the mode is NAMED"),
    (asking(LOOK, WAIT, LOOK), "chat.tools[2].name", "must be another for each tool, 'look' was given before"),
    (
        asking(replace(LOOK, parameters={"type": "array"})),
        "chat.tools[0].parameters",
        "must be the schema of an object, its type is 'array'",
    ),
    (
        asking(*(replace(WAIT, name=f"f{index}") for index in range(129))),
        "chat.tools",
        "must have at most 128 entries, has 129",
    ),
    (
        replace(asking(LOOK, choice=REQUIRED), constraint=Constraint(ConstraintKind.REGEX, "a")),
        "constraint",
        "must not be set beside a chat.tool_choice that asks for a call",
    ),
    (
        replace(asking(LOOK, choice=REQUIRED), stopping=StoppingOptions(ignore_end_of_sequence=True)),
        "stopping.ignore_end_of_sequence",
        "must not be set beside chat.tool_choice, which says where a completion ends",
    ),
]


@pytest.mark.parametrize(("request_", "field", "description"), WRONG)
def test_what_contradicts_itself_is_named(request_: GenerationRequest, field: str, description: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validator().check(request_)
    assert [(violation.field, violation.description) for violation in caught.value.violations] == [(field, description)]


@pytest.mark.parametrize("choice", [None, *ToolChoiceMode])
def test_every_choice_is_taken_where_the_model_and_the_engine_can(choice: ToolChoiceMode | None) -> None:
    name = "wait" if choice is NAMED else ""
    validator().check(asking(LOOK, WAIT, choice=choice, name=name, parallel_tool_calls=False))
    assert validator().supported_fields >= CHAT_FIELDS


UNABLE = [
    (replace(CARD, chat_template=None), frozenset({"constraint"}), asking(), "chat"),
    (replace(CARD, takes_tools=False, tool_format=None), frozenset({"constraint"}), asking(LOOK), "chat.tools"),
    (
        replace(CARD, tool_format=None),
        frozenset({"constraint"}),
        asking(LOOK, parallel_tool_calls=False),
        "chat.parallel_tool_calls",
    ),
    (replace(CARD, tool_format=None), frozenset({"constraint"}), asking(LOOK, choice=REQUIRED), "chat.tool_choice"),
    (CARD, frozenset(), asking(LOOK, choice=NAMED, name="look"), "chat.tool_choice"),
    (
        replace(CARD, end_of_sequence_token_ids=()),
        frozenset({"constraint"}),
        asking(LOOK, choice=REQUIRED),
        "chat.tool_choice",
    ),
]


@pytest.mark.parametrize(("card", "fields", "request_", "field"), UNABLE)
def test_what_the_model_or_the_engine_cannot_do_is_named(
    card: ModelCard, fields: frozenset[str], request_: GenerationRequest, field: str
) -> None:
    made = validator(card, fields)
    with pytest.raises(FeatureUnsupported) as caught:
        made.check(request_)
    assert caught.value.field == field
    assert field not in made.supported_fields


def test_where_no_tool_may_be_called_the_model_need_not_know_any() -> None:
    made = validator(replace(CARD, takes_tools=False, tool_format=None))
    made.check(asking(LOOK, choice=NONE, parallel_tool_calls=False))
    made.check(asking(parallel_tool_calls=False))


def test_raw_output_takes_nothing_out() -> None:
    hold = Hold(Constraint(ConstraintKind.LARK, 'start: "x"'), 'start: "x"')
    expected = ChatOutput(tool_format=ToolFormat.HERMES)
    for is_raw, output in [(False, expected), (True, ChatOutput())]:
        request = asking(LOOK, choice=REQUIRED, raw_output=is_raw)
        valid = validator().resolve(request, (1,), request_id="r", seed=0, hold=hold, expected=expected)
        assert valid.chat_output == output
        assert (valid.constraint, valid.grammar) == (hold.constraint, hold.grammar)

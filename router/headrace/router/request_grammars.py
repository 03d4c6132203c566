"""Finds what holds the completions of a request: its constraint, or the calls that it has to make."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from headrace.contract.chat_output import ChatOutput
from headrace.contract.errors import InvalidRequest
from headrace.contract.generation import ChatPrompt, Constraint, ConstraintKind, GenerationRequest, Tool, ToolChoiceMode
from headrace.contract.vocabulary import Vocabulary
from headrace.router.chat_output.notation import ChatNotation, arguments_schema
from headrace.router.constraint_compiler import ConstraintCompiler
from headrace.router.constraint_notation import find_constraint_violations
from headrace.router.model_card import ModelCard
from headrace.router.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Hold:
    """What completions have to belong to."""

    constraint: Constraint
    grammar: str
    """The constraint, compiled."""


class RequestGrammars:
    """Makes the grammars of requests for one model. Nothing is started before the first. Use on one event loop."""

    __slots__ = ("_compiler", "_notation")

    def __init__(self, card: ModelCard, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        def mark_id(text: str) -> int | None:
            token_id = tokenizer.token_id(text)
            return token_id if token_id in tokenizer.special_token_ids else None

        self._compiler = ConstraintCompiler(vocabulary)
        self._notation = ChatNotation(card.tool_format, card.calling_template, mark_id)

    async def of(self, request: GenerationRequest, output: ChatOutput) -> Hold:
        """Returns what holds the completions of a request that needs a grammar, in which `output` is expected.

        Raises:
            InvalidRequest: a constraint, or the schema of a tool, cannot be followed; with its field and the reason.
        """
        return await asyncio.get_running_loop().run_in_executor(self._compiler.executor, self._compile, request, output)

    def _compile(self, request: GenerationRequest, output: ChatOutput) -> Hold:
        chat, opening = request.prompt, self._notation.opening(output)
        if request.constraint is not None:
            # Reasoning that is not taken out is part of the text, which the constraint is about.
            is_raw = isinstance(chat, ChatPrompt) and chat.raw_output
            constraint = replace(request.constraint, opening="" if is_raw else opening)
            return Hold(constraint, self._compiler.compile(constraint))
        assert isinstance(chat, ChatPrompt), "only a conversation has tools"
        tools = called_tools(chat)
        self._check_tools(chat.tools, tools)
        calls = self._notation.calls(tools, is_single=not output.parallel_tool_calls)
        constraint = Constraint(ConstraintKind.LARK, calls, opening)
        return Hold(constraint, self._compiler.compile(constraint, "chat.tools"))

    def _check_tools(self, tools: Iterable[Tool], called: tuple[Tool, ...]) -> None:
        """Checks each tool alone, its schema by compiling it, so that a refusal names the one that it is about."""
        for index, tool in enumerate(tools):
            if tool in called:
                if not self._notation.can_call(tool.name):
                    allowed = "must consist of letters, digits, '_', '.' and '-' to be called by this model"
                    raise InvalidRequest.of(f"chat.tools[{index}].name", allowed)
                field = f"chat.tools[{index}].parameters"
                schema = Constraint(ConstraintKind.JSON_SCHEMA, arguments_schema(tool))
                violations = [replace(violation, field=field) for violation in find_constraint_violations(schema)]
                if violations:
                    raise InvalidRequest(violations)
                self._compiler.compile(schema, field)


def needs_grammar(request: GenerationRequest) -> bool:
    """Whether the completions of a request are held to anything."""
    return request.constraint is not None or (
        isinstance(request.prompt, ChatPrompt) and bool(called_tools(request.prompt))
    )


def called_tools(chat: ChatPrompt) -> tuple[Tool, ...]:
    """Returns the tools of which one has to be called; none if the model is free not to."""
    match chat.tool_choice:
        case ToolChoiceMode.REQUIRED:
            return chat.tools
        case ToolChoiceMode.NAMED:
            return tuple(tool for tool in chat.tools if tool.name == chat.tool_choice_name)
        case _:
            return ()

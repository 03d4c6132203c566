"""Renders a conversation to a prompt with the model's own chat template."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from jinja2 import TemplateError, TemplateSyntaxError

from headrace.contract.errors import FeatureUnsupported, InvalidRequest, StartupError
from headrace.contract.generation import ChatPrompt, ToolChoiceMode
from headrace.router.template_environment import TemplateEnvironment, TemplateTooExpensive, render
from headrace.router.template_messages import find_message_form, shown, template_variables, whole_numbers

RESERVED_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
"""Variables of a template that the prompt itself sets."""

_STEP_LIMIT = 200_000
_OUTPUT_LIMIT_CHARACTERS = 16 * 2**20

_CALLS = "tool_calls"
"""The member of a message that a template has to look at, if it writes calls at all."""

# The space tells whether the template trimmed the message: then the mark has lost it.
_CONTINUATION_MARK = "\ue000continues here\ue001 "


class _Compiled:
    """One template, and the form in which it takes conversations."""

    __slots__ = ("_compiled", "_special_tokens", "form")

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: Callable[[], datetime]) -> None:
        try:
            self._compiled = TemplateEnvironment(now).compile_chat_template(source)
        except TemplateSyntaxError as error:
            raise StartupError(f"the model's chat template is not valid in line {error.lineno}: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.form = find_message_form(self.render, takes_tools=self.takes_tools)

    @property
    def takes_tools(self) -> bool:
        return "tools" in self._compiled.variables

    def render(self, variables: dict[str, object]) -> str:
        """Returns the text of some variables.

        Raises:
            InvalidRequest: the template refuses them, or cannot render them.
        """
        try:
            text = render(
                self._compiled,
                {"documents": None, **self._special_tokens, **variables},
                step_limit=_STEP_LIMIT,
                output_limit_characters=_OUTPUT_LIMIT_CHARACTERS,
            )
            # Half of a surrogate pair can come in as an escape in JSON. It has no bytes, hence no tokens.
            text.encode()
        except TemplateTooExpensive as error:
            raise InvalidRequest.of("chat", f"the model's chat template was stopped: {error}") from error
        except TemplateError as error:
            raise InvalidRequest.of("chat", f"refused by the model's chat template: {shown(error)}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # What a template computes with is the caller's: a missing key, a string in place of a list.
            detail = f"{type(error).__name__}: {shown(error)}"
            raise InvalidRequest.of("chat", f"the model's chat template cannot render it: {detail}") from error
        return text


class ChatTemplate:
    """A model's chat template, or the two of a model that has one of its own for tools. Threads may share it."""

    __slots__ = ("_plain", "_with_tools", "_writes_calls")

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str],
        *,
        tool_template: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Compiles a template.

        Args:
            template: Jinja, as `tokenizer_config.json` holds it.
            special_tokens: variables such as `bos_token`.
            tool_template: the one for conversations with tools; None if it is the same.
            now: local time, for templates that write the date.

        Raises:
            StartupError: a template is not valid.
        """
        self._plain = _Compiled(template, special_tokens, now)
        self._with_tools = self._plain
        if tool_template is not None:
            self._with_tools = _Compiled(tool_template, special_tokens, now)
        self._writes_calls = any(_CALLS in source for source in (template, tool_template or ""))

    @property
    def takes_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return self._with_tools.takes_tools

    def render(self, chat: ChatPrompt) -> str:
        """Returns the text of a conversation, ready for its completion. Can take a while: use a thread.

        Raises:
            InvalidRequest: the template refuses the conversation, or cannot render it.
            FeatureUnsupported: there are tools or calls, but the template has no place for them.
        """
        # "none" means that no tool is to be called, so the model need not know of them.
        tools = () if chat.tool_choice is ToolChoiceMode.NONE else chat.tools
        if tools and not self.takes_tools:
            raise FeatureUnsupported("chat.tools", "the model's chat template has no place for tools")
        called = next((index for index, message in enumerate(chat.messages) if message.tool_calls), None)
        if called is not None and not self._writes_calls:
            path = f"chat.messages[{called}].tool_calls"
            raise FeatureUnsupported(path, "the model's chat template has no place for tool calls")
        # A conversation that has come to calls needs the template that can write them.
        compiled = self._with_tools if tools or called is not None else self._plain
        messages = chat.messages
        if chat.continue_final_message:
            marked = replace(messages[-1], content=messages[-1].content + _CONTINUATION_MARK)
            messages = (*messages[:-1], marked)
        text = compiled.render(
            {name: whole_numbers(value) for name, value in chat.template_arguments.items()}
            | template_variables(messages, tools, compiled.form)
            | {"add_generation_prompt": not chat.continue_final_message}
        )
        if chat.continue_final_message:
            text = _cut_at_mark(text, chat.messages[-1].content)
        return text


def _cut_at_mark(text: str, content: str) -> str:
    """Returns the text up to the end of the last message's content."""
    mark = _CONTINUATION_MARK.rstrip()
    at = text.rfind(mark)
    if at < 0 or content.strip() not in text:
        raise InvalidRequest.of(
            "chat.continue_final_message", "the model's chat template does not write the last message as it is"
        )
    was_trimmed = not text.startswith(_CONTINUATION_MARK, at)
    return text[:at].rstrip() if was_trimmed else text[:at]

"""Says what is to be found in the completions of a conversation, from the conversation and its rendered prompt."""

from headrace.contract.chat_output import ChatOutput, ReasoningFormat
from headrace.contract.generation import ChatPrompt, ToolChoiceMode
from headrace.router.chat_output.formats import REASONING_TAGS
from headrace.router.model_card import ModelCard


def expected_output(chat: ChatPrompt, prompt: str, card: ModelCard) -> ChatOutput:
    """Returns what can be taken out of the completions; whether the request wants it raw is not looked at.

    Args:
        chat: The conversation.
        prompt: What the model's template made of it.
        card: How the model writes.
    """
    reasoning_format, starts_in_reasoning = _expected_reasoning(chat, prompt, card.reasoning_format)
    takes_calls = bool(chat.tools) and chat.tool_choice is not ToolChoiceMode.NONE
    return ChatOutput(
        tool_format=card.tool_format if takes_calls else None,
        tool_names=frozenset(tool.name for tool in chat.tools) if takes_calls else frozenset(),
        # A named tool is called once.
        parallel_tool_calls=chat.parallel_tool_calls and chat.tool_choice is not ToolChoiceMode.NAMED,
        reasoning_format=reasoning_format,
        starts_in_reasoning=starts_in_reasoning,
    )


def _expected_reasoning(
    chat: ChatPrompt, prompt: str, reasoning_format: ReasoningFormat | None
) -> tuple[ReasoningFormat | None, bool]:
    """Returns how reasoning is marked in the completions, None if there can be none, and whether they begin in it."""
    if reasoning_format is None:
        return None, False
    begin, end = REASONING_TAGS[reasoning_format]
    begun = chat.messages[-1].content if chat.continue_final_message else ""
    if begun.strip():
        # The assistant's own words say where it is: before its answer was begun, or in it.
        is_inside = begun.rfind(begin) > begun.rfind(end)
        return (reasoning_format, True) if is_inside else (None, False)
    prompt = prompt.rstrip()
    if prompt.endswith(end):
        # The template has closed it, as some do when thinking is switched off.
        return None, False
    return reasoning_format, prompt.endswith(begin)

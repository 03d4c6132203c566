"""What becomes of a completion in which calls and reasoning are looked for, token by token."""

from collections.abc import Sequence as Many

import pytest
from text_models import byte_level_backend
from tokenizers import AddedToken

from headrace.contract.chat_output import ChatOutput, ReasoningFormat, ToolFormat
from headrace.contract.generation import (
    CompletionEnd,
    FinishReason,
    GenerationDelta,
    GenerationFinished,
    ToolCallDelta,
    ValidRequest,
)
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.contract.step import RowEnd, RowLogprobs
from headrace.router.active_request import ActiveRequest
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.tokenizer import Tokenizer

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>'
CALLS = ChatOutput(tool_format=ToolFormat.HERMES, tool_names=frozenset({"look"}))
ONE_CALL = ChatOutput(tool_format=ToolFormat.HERMES, tool_names=frozenset({"look"}), parallel_tool_calls=False)
THOUGHTS = ChatOutput(reasoning_format=ReasoningFormat.THINK, tool_format=ToolFormat.HERMES)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Each byte is a token, and each mark a special one."""
    backend = byte_level_backend()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return Tokenizer(backend)


class Completions:
    """A request whose completions are written by the test."""

    def __init__(
        self, tokenizer: Tokenizer, output: ChatOutput, *, stop: str = "", least_count: int = 0, count: int = 1
    ) -> None:
        request = ValidRequest(
            request_id="r",
            model="m",
            prompt_token_ids=(0, 1),
            sampling=SamplingParams(seed=9),
            row_stop=RowStopRules(token_limit=500, min_new_token_count=least_count),
            text_stop=TextStopRules(stop_sequences=(stop,) if stop else ()),
            logprobs=LogprobOptions(sampled=True),
            max_new_token_count=498,
            completion_count=count,
            best_of=count,
            chat_output=output,
        )
        self.tokenizer = tokenizer
        self.sequences = [
            Sequence(sequence_id=index + 1, request=request.of_completion(index), arrival_s=0.0)
            for index in range(count)
        ]
        self.active = ActiveRequest(request, self.sequences, tokenizer, None)
        self.active.start(0.5)

    def write(self, text: str, end: RowEnd | None = None, *, index: int = 0, step: int = 3) -> None:
        """Draws the tokens of a text, `step` at a time, until the completion ends."""
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(token_ids), step):
            drawn = tuple(token_ids[start : start + step])
            is_last = start + step >= len(token_ids)
            report = RowLogprobs(row=0, is_prompt=False, logprobs=(-1.0,) * len(drawn), ranks=(1,) * len(drawn))
            update = SequenceUpdate(self.sequences[index], drawn, end if is_last else None, None, (report,))
            if self.active.advance(update, 1.0):
                return

    async def deltas(self) -> tuple[list[GenerationDelta], Many[CompletionEnd]]:
        events = [event async for event in self.active.stream.events()]
        assert isinstance(events[-1], GenerationFinished)
        return [event for event in events if isinstance(event, GenerationDelta)], events[-1].ends


async def one(completions: Completions) -> tuple[GenerationDelta, CompletionEnd]:
    [delta], [end] = await completions.deltas()
    assert len(delta.token_ids) == len(delta.logprobs) == end.generated_token_count
    return delta, end


def names(calls: tuple[ToolCallDelta, ...]) -> list[tuple[int, str, str]]:
    return [(call.index, call.name, call.arguments_json) for call in calls]


@pytest.mark.parametrize("step", [1, 2, 7, 500])
async def test_reasoning_text_and_calls_arrive_apart(tokenizer: Tokenizer, step: int) -> None:
    completions = Completions(tokenizer, THOUGHTS)
    completions.write(f"<think>\nhm</think>\n\nI look.\n{CALL}\n{CALL}<s>", RowEnd.END_OF_SEQUENCE, step=step)
    delta, end = await one(completions)
    assert (delta.reasoning, delta.text) == ("hm", "I look.")
    assert names(delta.tool_calls) == [(0, "look", '{"at": "x"}'), (1, "look", '{"at": "x"}')]
    assert len({call.id for call in delta.tool_calls}) == 2
    assert all(len(call.id) == 9 and call.id.isalnum() for call in delta.tool_calls)
    assert end.reason is FinishReason.END_OF_SEQUENCE


@pytest.mark.parametrize("step", [1, 2, 7, 500])
async def test_the_only_call_ends_a_completion_at_its_last_brace(tokenizer: Tokenizer, step: int) -> None:
    completions = Completions(tokenizer, ONE_CALL)
    completions.write(f"Now {CALL}{CALL}", step=step)
    delta, end = await one(completions)
    assert delta.text == "Now"
    assert names(delta.tool_calls) == [(0, "look", '{"at": "x"}')]
    assert end.reason is FinishReason.TOOL_CALL
    assert tokenizer.decode(delta.token_ids, include_special_tokens=True) == f"Now {CALL}".removesuffix(
        "\n</tool_call>"
    )


async def test_the_only_call_waits_for_the_least_count(tokenizer: Tokenizer) -> None:
    completions = Completions(tokenizer, ONE_CALL, least_count=80)
    completions.write(f"{CALL}{CALL}{CALL}")
    delta, end = await one(completions)
    assert names(delta.tool_calls) == [(0, "look", '{"at": "x"}')]
    assert (delta.text, end.reason, end.generated_token_count) == ("", FinishReason.TOOL_CALL, 80)


@pytest.mark.parametrize("output", [CALLS, ONE_CALL])
async def test_a_stop_sequence_within_a_call_gives_it_back(tokenizer: Tokenizer, output: ChatOutput) -> None:
    completions = Completions(tokenizer, output, stop='"at"')
    completions.write(CALL)
    delta, end = await one(completions)
    assert delta.text == CALL[: CALL.index('"at"')]
    assert not delta.tool_calls
    assert (end.reason, end.stop_sequence) == (FinishReason.STOP_SEQUENCE, '"at"')


async def test_a_call_that_was_cut_off_is_given_back_to_the_letter(tokenizer: Tokenizer) -> None:
    completions = Completions(tokenizer, CALLS)
    completions.write(CALL[:-20], RowEnd.TOKEN_LIMIT)
    delta, _ = await one(completions)
    assert (delta.text, delta.tool_calls) == (CALL[:-20], ())


async def test_special_tokens_are_spelled_out_for_nobody_else(tokenizer: Tokenizer) -> None:
    completions = Completions(tokenizer, ChatOutput())
    completions.write(f"Now {CALL}<s>", RowEnd.END_OF_SEQUENCE)
    delta, _ = await one(completions)
    assert delta.text == 'Now \n{"name": "look", "arguments": {"at": "x"}}\n'


async def test_each_completion_is_read_alone(tokenizer: Tokenizer) -> None:
    completions = Completions(tokenizer, ONE_CALL, count=2)
    completions.write(CALL[:20], index=0)
    completions.write(f"Well. {CALL}", index=1)
    completions.write(CALL[20:], index=0)
    deltas, ends = await completions.deltas()
    found = {delta.index: delta for delta in deltas}
    assert (found[0].text, found[1].text) == ("", "Well.")
    assert names(found[0].tool_calls) == names(found[1].tool_calls) == [(0, "look", '{"at": "x"}')]
    assert found[0].tool_calls[0].id != found[1].tool_calls[0].id
    assert [end.reason for end in ends] == [FinishReason.TOOL_CALL] * 2

"""The gate between what a client asked and what can run."""

import math
from dataclasses import fields, replace

import pytest

from headrace.contract.errors import FeatureUnsupported, Forbidden, InvalidRequest
from headrace.contract.generation import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    GenerationRequest,
    OutputOptions,
    Prompt,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolCall,
    ToolChoiceMode,
    WatermarkOptions,
)
from headrace.contract.sampling import (
    LengthPenalty,
    RowStopRules,
    SamplingOptions,
    SamplingParams,
    StoppingOptions,
    TextStopRules,
    Watermark,
)
from headrace.router.model_card import ModelCard
from headrace.router.validation import ROUTER_FIELDS, RequestLimits, Validator, deliverable_fields
from headrace.router.watermarks import Watermarks

VOCABULARY = 1000
CARD = ModelCard(
    name="m",
    architecture="llama",
    context_token_count=100,
    vocabulary_size=VOCABULARY,
    end_of_sequence_token_ids=(2, 5),
    chat_template="{{ messages }}",
)
LIMITS = RequestLimits(context_token_count=100, prompt_token_count=90)
SAMPLING_FIELDS = frozenset(f"sampling.{option.name}" for option in fields(SamplingOptions))
NATIVE_FIELDS = frozenset(
    {
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.seed",
        "stopping.min_new_token_count",
        "stopping.stop_token_ids",
        "output.token_logprobs",
        "output.top_logprob_count",
    }
)
EVERY_FIELD = SAMPLING_FIELDS | NATIVE_FIELDS | {"constraint", "adapter", "completion_count", "best_of", "watermark"}
TEXT = TextPrompt("hello")
USER = ChatMessage(role="user", content="hi")
TOOL = Tool(name="f" * 64, description="", parameters={"type": "object"})


def asking(prompt: Prompt | None = TEXT, **values: object) -> GenerationRequest:
    return replace(GenerationRequest(prompt=prompt), **values)


def sampling(**options: object) -> GenerationRequest:
    return asking(sampling=replace(SamplingOptions(), **options))


def stopping(**options: object) -> GenerationRequest:
    return asking(stopping=replace(StoppingOptions(), **options))


def output(**options: object) -> GenerationRequest:
    return asking(output=replace(OutputOptions(), **options))


def chat(*messages: ChatMessage, **values: object) -> GenerationRequest:
    return asking(replace(ChatPrompt(messages=messages), **values))


def validator(engine_fields: frozenset[str] = EVERY_FIELD, card: ModelCard = CARD) -> Validator:
    return Validator(card, LIMITS, engine_fields)


def violations_of(request: GenerationRequest, card: ModelCard = CARD) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        validator(card=card).check(request)
    return [(violation.field, violation.description) for violation in caught.value.violations]


NAN, INFINITY = math.nan, math.inf

OUT_OF_RANGE = [
    (sampling(temperature=2.01), "sampling.temperature", "must be in [0, 2], is 2.01"),
    (sampling(temperature=-0.1), "sampling.temperature", "must be in [0, 2], is -0.1"),
    (sampling(temperature=NAN), "sampling.temperature", "must be in [0, 2], is nan"),
    (sampling(temperature=INFINITY), "sampling.temperature", "must be in [0, 2], is inf"),
    (sampling(top_k=-1), "sampling.top_k", "must be in [0, 1000], is -1"),
    (sampling(top_k=1001), "sampling.top_k", "must be in [0, 1000], is 1001"),
    (sampling(top_p=0.0), "sampling.top_p", "must be in (0, 1], is 0.0"),
    (sampling(top_p=1.5), "sampling.top_p", "must be in (0, 1], is 1.5"),
    (sampling(top_p=NAN), "sampling.top_p", "must be in (0, 1], is nan"),
    (sampling(min_p=-0.5), "sampling.min_p", "must be in [0, 1], is -0.5"),
    (sampling(typical_p=0.0), "sampling.typical_p", "must be in (0, 1], is 0.0"),
    (sampling(seed=-1), "sampling.seed", "must be in [0, 2^64), is -1"),
    (sampling(seed=2**64), "sampling.seed", "must be in [0, 2^64), is 18446744073709551616"),
    (sampling(repetition_penalty=0.0), "sampling.repetition_penalty", "must be in (0, 2], is 0.0"),
    (sampling(frequency_penalty=2.5), "sampling.frequency_penalty", "must be in [-2, 2], is 2.5"),
    (sampling(presence_penalty=-2.5), "sampling.presence_penalty", "must be in [-2, 2], is -2.5"),
    (sampling(logit_bias={1000: 1.0}), "sampling.logit_bias[1000]", "the key must be in [0, 1000)"),
    (sampling(logit_bias={7: 101.0}), "sampling.logit_bias[7]", "must be in [-100, 100], is 101.0"),
    (sampling(logit_bias={7: NAN}), "sampling.logit_bias[7]", "must be in [-100, 100], is nan"),
    (sampling(banned_words=("",)), "sampling.banned_words[0]", "must not be empty"),
    (sampling(banned_words=("é" * 129,)), "sampling.banned_words[0]", "must have at most 256 bytes, has 258"),
    (sampling(banned_words=("a",) * 65), "sampling.banned_words", "must have at most 64 entries, has 65"),
    (
        sampling(length_penalty=LengthPenalty(start_index=-1, decay_factor=2)),
        "sampling.length_penalty.start_index",
        "must be at least 0, is -1",
    ),
    (
        sampling(length_penalty=LengthPenalty(start_index=0, decay_factor=0.5)),
        "sampling.length_penalty.decay_factor",
        "must be in [1, 10], is 0.5",
    ),
    (stopping(max_new_token_count=0), "stopping.max_new_token_count", "must be at least 1, is 0"),
    (stopping(min_new_token_count=-1), "stopping.min_new_token_count", "must be at least 0, is -1"),
    (
        stopping(min_new_token_count=6, max_new_token_count=5),
        "stopping.min_new_token_count",
        "must not be more than max_new_token_count, 5, is 6",
    ),
    (stopping(stop_sequences=("a",) * 17), "stopping.stop_sequences", "must have at most 16 entries, has 17"),
    (stopping(stop_sequences=("a", "")), "stopping.stop_sequences[1]", "must not be empty"),
    (stopping(stop_sequences=("é" * 513,)), "stopping.stop_sequences[0]", "must have at most 1024 bytes, has 1026"),
    (stopping(stop_token_ids=(1,) * 65), "stopping.stop_token_ids", "must have at most 64 entries, has 65"),
    (stopping(stop_token_ids=(3, 1000)), "stopping.stop_token_ids[1]", "must be in [0, 1000), is 1000"),
    (stopping(time_limit_s=0.0), "stopping.time_limit", "must be positive, is 0.0 s"),
    (stopping(time_limit_s=-1.0), "stopping.time_limit", "must be positive, is -1.0 s"),
    (stopping(time_limit_s=NAN), "stopping.time_limit", "must be positive, is nan s"),
    (output(top_logprob_count=21, token_logprobs=True), "output.top_logprob_count", "must be in [0, 20], is 21"),
    (output(top_logprob_count=2), "output.top_logprob_count", "needs token_logprobs when it is positive, is 2"),
    (asking(None), "prompt", "one of text, token_ids and chat must be set"),
    (asking(TextPrompt("")), "text", "must not be empty"),
    (asking(TokenPrompt(())), "token_ids", "must not be empty"),
    (asking(TokenPrompt((1, 1000, 1001))), "token_ids.ids[1]", "must be in [0, 1000), is 1000"),
    (asking(TokenPrompt((1, -1))), "token_ids.ids[1]", "must be in [0, 1000), is -1"),
    (asking(request_id="a b"), "request_id", "must be 1 to 128 visible ASCII characters, is 'a b'"),
    (asking(request_id="é"), "request_id", "must be 1 to 128 visible ASCII characters, is '\\xe9'"),
    (asking(priority=11), "priority", "must be in [-10, 10], is 11"),
    (asking(priority=-11), "priority", "must be in [-10, 10], is -11"),
    (asking(cache_salt="é" * 129), "cache_salt", "must have at most 256 bytes, has 258"),
    (asking(completion_count=0), "completion_count", "must be in [1, 16], is 0"),
    (asking(completion_count=17), "completion_count", "must be in [1, 16], is 17"),
    (asking(best_of=0), "best_of", "must be in [1, 16], from completion_count to the limit, is 0"),
    (asking(best_of=17), "best_of", "must be in [1, 16], from completion_count to the limit, is 17"),
    (
        asking(best_of=2, completion_count=3),
        "best_of",
        "must be in [3, 16], from completion_count to the limit, is 2",
    ),
    (
        asking(best_of=2, output=OutputOptions(token_logprobs=True, processed_logprobs=True)),
        "output.processed_logprobs",
        "must not be set beside best_of, which compares unprocessed ones",
    ),
    (asking(truncate_prompt_token_count=0), "truncate_prompt_token_count", "must be at least 1, is 0"),
    (chat(), "chat.messages", "must hold at least one message"),
    (chat(USER, ChatMessage(role="", content="x")), "chat.messages[1].role", "must not be empty"),
    (chat(ChatMessage(role="user", content="")), "chat.messages[0].content", "may be empty only beside tool_calls"),
    (
        chat(USER, continue_final_message=True),
        "chat.continue_final_message",
        "the last message must be the assistant's, its role is 'user'",
    ),
    (
        chat(USER, template_arguments={"messages": []}),
        "chat.template_arguments.messages",
        "is set by the prompt itself",
    ),
    (
        chat(USER, tools=(TOOL, Tool(name="", description="", parameters={}))),
        "chat.tools[1].name",
        "must have 1 to 64 characters, is ''",
    ),
]


@pytest.mark.parametrize(("request_", "field", "description"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_its_limit(
    request_: GenerationRequest, field: str, description: str
) -> None:
    assert violations_of(request_) == [(field, description)]


IN_RANGE = [
    sampling(temperature=0.0, top_k=0, top_p=1e-6, min_p=1.0, typical_p=1.0, seed=0),
    sampling(temperature=2.0, top_k=1000, top_p=1.0, min_p=0.0, seed=2**64 - 1),
    sampling(repetition_penalty=2.0, frequency_penalty=-2.0, presence_penalty=2.0),
    sampling(logit_bias=dict.fromkeys(range(1000), -100.0)),
    sampling(length_penalty=LengthPenalty(start_index=0, decay_factor=10)),
    stopping(max_new_token_count=1, min_new_token_count=1, time_limit_s=1e-9),
    stopping(stop_sequences=("x" * 1024,) * 16, stop_token_ids=(999,) * 64),
    output(token_logprobs=True, top_logprob_count=20, include_special_tokens=True),
    output(token_logprobs=False, top_logprob_count=0),
    asking(request_id="!~" * 64, priority=10, cache_salt="x" * 256, truncate_prompt_token_count=1),
    asking(TokenPrompt((0, 999)), priority=-10, completion_count=1, best_of=1),
    asking(completion_count=16, best_of=16),
    asking(best_of=16, sampling=SamplingOptions(temperature=0.0)),
    chat(USER, ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="", name="f", arguments_json=""),))),
    chat(USER, ChatMessage(role="tool", content="")),
    chat(USER, ChatMessage(role="assistant", content="So"), continue_final_message=True),
    chat(USER, tools=(TOOL,), tool_choice=ToolChoiceMode.NONE, parallel_tool_calls=False),
]


@pytest.mark.parametrize("request_", IN_RANGE)
def test_the_ends_of_the_ranges_are_in_them(request_: GenerationRequest) -> None:
    validator().check(request_)


def test_all_violations_are_reported_together() -> None:
    request = asking(
        None,
        sampling=SamplingOptions(temperature=-1, top_p=2),
        stopping=StoppingOptions(max_new_token_count=0),
        priority=99,
    )
    assert [field for field, _ in violations_of(request)] == [
        "prompt",
        "sampling.temperature",
        "sampling.top_p",
        "stopping.max_new_token_count",
        "priority",
    ]


def test_the_report_fits_into_the_headers_of_a_status() -> None:
    request = asking(
        request_id="日" * 1_000_000,
        sampling=SamplingOptions(logit_bias={10**9 + key: NAN for key in range(100_000)}),
    )
    with pytest.raises(InvalidRequest) as caught:
        validator().check(request)
    assert len(str(caught.value)) < 3_000


def test_the_default_length_bounds_the_least_length() -> None:
    card = replace(CARD, default_max_new_token_count=20)
    assert violations_of(stopping(min_new_token_count=21), card) == [
        ("stopping.min_new_token_count", "must not be more than max_new_token_count, 20, is 21")
    ]


UNSUPPORTED = [
    (sampling(min_p=0.1), "sampling.min_p"),
    (sampling(typical_p=0.9), "sampling.typical_p"),
    (sampling(repetition_penalty=1.1), "sampling.repetition_penalty"),
    (sampling(frequency_penalty=0.5), "sampling.frequency_penalty"),
    (sampling(presence_penalty=0.5), "sampling.presence_penalty"),
    (sampling(logit_bias={1: 1.0}), "sampling.logit_bias"),
    (sampling(banned_words=("a",)), "sampling.banned_words"),
    (sampling(length_penalty=LengthPenalty(start_index=1, decay_factor=1.5)), "sampling.length_penalty"),
    (output(prompt_logprobs=True), "output.prompt_logprobs"),
    (output(processed_logprobs=True), "output.processed_logprobs"),
    (asking(constraint=Constraint(ConstraintKind.REGEX, "a+")), "constraint"),
    (asking(adapter="tuned"), "adapter"),
    (asking(watermark=WatermarkOptions()), "watermark"),
    (chat(USER, tools=(TOOL,)), "chat.tools"),
    (chat(USER, tools=(TOOL,), tool_choice=ToolChoiceMode.REQUIRED), "chat.tools"),
    (chat(USER, replace(USER, has_image=True)), "chat.messages[1].content"),
]


@pytest.mark.parametrize(("request_", "field"), UNSUPPORTED)
def test_an_option_that_the_engine_lacks_is_named(request_: GenerationRequest, field: str) -> None:
    with pytest.raises(FeatureUnsupported) as caught:
        validator(NATIVE_FIELDS).check(request_)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "request_",
    [
        sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0),
        sampling(repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, logit_bias={3: 0.0}),
        sampling(length_penalty=LengthPenalty(start_index=3, decay_factor=1.0)),
        output(token_logprobs=False, top_logprob_count=0, prompt_logprobs=False, processed_logprobs=False),
        stopping(min_new_token_count=0),
        asking(completion_count=3, best_of=3, watermark=WatermarkOptions(enabled=False)),
    ],
)
def test_a_value_that_says_off_needs_no_engine(request_: GenerationRequest) -> None:
    validator(frozenset()).check(request_)


@pytest.mark.parametrize(
    "request_",
    [
        stopping(max_new_token_count=3, stop_sequences=("a",), include_stop_sequence=True, time_limit_s=1.0),
        stopping(ignore_end_of_sequence=True),
        output(include_special_tokens=True),
        asking(
            model="m",
            request_id="r",
            priority=3,
            cache_salt="s",
            truncate_prompt_token_count=5,
            add_special_tokens=False,
            completion_count=2,
        ),
    ],
)
def test_what_the_router_does_needs_no_engine(request_: GenerationRequest) -> None:
    validator(frozenset()).check(request_)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (sampling(temperature=0.5), "sampling.temperature"),
        (sampling(temperature=0.0), "sampling.temperature"),
        (sampling(top_k=5), "sampling.top_k"),
        (sampling(top_p=0.5), "sampling.top_p"),
        (sampling(seed=0), "sampling.seed"),
        (stopping(stop_token_ids=(1,)), "stopping.stop_token_ids"),
        (stopping(min_new_token_count=1), "stopping.min_new_token_count"),
        (output(token_logprobs=True), "output.token_logprobs"),
        (asking(best_of=2), "best_of"),
    ],
)
def test_an_engine_that_lists_nothing_gets_nothing(request_: GenerationRequest, field: str) -> None:
    with pytest.raises(FeatureUnsupported) as caught:
        validator(frozenset()).check(request_)
    assert caught.value.field == field


def test_a_mistake_is_told_before_a_missing_feature() -> None:
    assert violations_of(sampling(min_p=5.0)) == [("sampling.min_p", "must be in [0, 1], is 5.0")]


def test_fields_that_the_router_cannot_carry_are_not_offered() -> None:
    offered = deliverable_fields(EVERY_FIELD)
    assert offered >= ROUTER_FIELDS
    assert not offered & {"watermark"}
    assert validator().supported_fields == offered | {"chat"}


KEYS = Watermarks(keys={"first": 11, "second": 22}, gamma=0.5, delta=3.0)
MARKING = Validator(CARD, LIMITS, EVERY_FIELD, KEYS)
BAD_WATERMARKS = [
    (WatermarkOptions(key="third"), "watermark.key", "must be one of first, second"),
    (WatermarkOptions(gamma=0.0), "watermark.gamma", "must be in (0, 1), is 0.0"),
    (WatermarkOptions(gamma=NAN), "watermark.gamma", "must be in (0, 1), is nan"),
    (WatermarkOptions(delta=-1.0), "watermark.delta", "must be in (0, 100], is -1.0"),
]


@pytest.mark.parametrize(("options", "path", "message"), BAD_WATERMARKS)
def test_a_wrong_watermark_is_named(options: WatermarkOptions, path: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        MARKING.check(asking(watermark=options))
    assert [(violation.field, violation.description) for violation in caught.value.violations] == [(path, message)]


def mark_of(options: WatermarkOptions | None, watermarks: Watermarks = KEYS) -> Watermark | None:
    gate = Validator(CARD, LIMITS, EVERY_FIELD, watermarks)
    return gate.resolve(asking(watermark=options), (1,), request_id="r", seed=1).sampling.watermark


def test_a_watermark_is_made_of_the_request_and_the_servers_defaults() -> None:
    assert "watermark" in MARKING.supported_fields
    assert mark_of(None) is None
    assert mark_of(WatermarkOptions(enabled=False)) is None
    assert mark_of(WatermarkOptions()) == Watermark(key=11, gamma=0.5, delta=3.0)
    assert mark_of(WatermarkOptions(key="second", gamma=0.1, delta=1.0)) == Watermark(key=22, gamma=0.1, delta=1.0)
    always = replace(KEYS, is_default=True)
    assert mark_of(None, always) == Watermark(key=11, gamma=0.5, delta=3.0)
    assert mark_of(WatermarkOptions(enabled=False), always) is None
    lacking = Validator(CARD, LIMITS, NATIVE_FIELDS, always)
    assert lacking.resolve(asking(), (1,), request_id="r", seed=1).sampling.watermark is None


def test_a_template_in_the_request_is_forbidden() -> None:
    with pytest.raises(Forbidden, match=r"chat\.template"):
        validator().check(chat(USER, template="{{ messages }}"))


def test_a_model_without_a_template_takes_no_chats() -> None:
    with pytest.raises(FeatureUnsupported) as caught:
        validator(card=replace(CARD, chat_template=None)).check(chat(USER))
    assert caught.value.field == "chat"


def test_a_bare_request_gets_the_defaults() -> None:
    valid = validator().resolve(asking(deadline_s=12.5), (7, 8), request_id="r", seed=99)
    assert valid.request_id == "r"
    assert valid.model == "m"
    assert valid.prompt_token_ids == (7, 8)
    assert valid.sampling == SamplingParams(seed=99)
    assert valid.row_stop == RowStopRules(token_limit=100, end_of_sequence_token_ids=(2, 5))
    assert valid.text_stop == TextStopRules()
    assert valid.deadline_s == 12.5
    assert (valid.priority, valid.cache_salt, valid.include_special_tokens) == (0, "", False)


def test_a_full_request_keeps_what_it_asked_for() -> None:
    request = asking(
        sampling=SamplingOptions(temperature=0.0, top_p=0.5, logit_bias={9: 1.0, 3: -1.0}),
        stopping=StoppingOptions(
            max_new_token_count=10,
            min_new_token_count=2,
            stop_sequences=("x",),
            stop_token_ids=(4, 4, 6),
            ignore_end_of_sequence=True,
            include_stop_sequence=True,
            time_limit_s=3.0,
        ),
        output=OutputOptions(token_logprobs=True, top_logprob_count=3, include_special_tokens=True),
        priority=-2,
        cache_salt="tenant",
    )
    valid = validator().resolve(request, [1] * 5, request_id="r", seed=1)
    assert valid.sampling == SamplingParams(temperature=0.0, top_p=0.5, seed=1, logit_bias=((3, -1.0), (9, 1.0)))
    assert valid.row_stop == RowStopRules(token_limit=15, min_new_token_count=2, stop_token_ids=(4, 6))
    assert valid.text_stop == TextStopRules(stop_sequences=("x",), include_stop_sequence=True, time_limit_s=3.0)
    assert (valid.logprobs.sampled, valid.logprobs.top_count) == (True, 3)
    assert (valid.max_new_token_count, valid.priority, valid.cache_salt) == (10, -2, "tenant")
    assert valid.include_special_tokens


def test_model_defaults_fill_what_is_unset_and_zero_is_zero() -> None:
    card = replace(CARD, default_sampling=SamplingParams(temperature=0.6, top_k=40), default_max_new_token_count=20)
    gate = validator(card=card)
    unset = gate.resolve(asking(), (1,), request_id="r", seed=1)
    assert unset.sampling == SamplingParams(temperature=0.6, top_k=40, seed=1)
    assert (unset.max_new_token_count, unset.row_stop.token_limit) == (20, 21)
    zero = gate.resolve(sampling(temperature=0.0, top_k=0), (1,), request_id="r", seed=1)
    assert zero.sampling == SamplingParams(temperature=0.0, top_k=0, seed=1)


def test_model_defaults_that_the_engine_lacks_are_left_out_and_listed() -> None:
    card = replace(CARD, default_sampling=SamplingParams(temperature=0.6, repetition_penalty=1.1, min_p=0.1))
    gate = validator(NATIVE_FIELDS, card)
    assert gate.default_sampling == SamplingParams(temperature=0.6)
    assert set(gate.dropped_defaults()) == {"sampling.repetition_penalty", "sampling.min_p"}
    assert validator(card=card).dropped_defaults() == ()


@pytest.mark.parametrize(
    ("prompt_count", "asked", "token_limit", "hits_context"),
    [(90, 5, 95, False), (90, 10, 100, False), (90, 11, 100, True), (90, None, 100, True), (1, None, 100, True)],
)
def test_the_context_limits_the_length(
    prompt_count: int, asked: int | None, token_limit: int, *, hits_context: bool
) -> None:
    valid = validator().resolve(stopping(max_new_token_count=asked), (1,) * prompt_count, request_id="r", seed=0)
    assert valid.row_stop.token_limit == token_limit
    # How the router tells the context from a limit of the caller: fewer tokens fit than were asked for.
    assert (token_limit - prompt_count < valid.max_new_token_count) == hits_context


@pytest.mark.parametrize(
    ("prompt", "field"), [(TEXT, "text"), (TokenPrompt((1,) * 91), "token_ids"), (ChatPrompt(messages=(USER,)), "chat")]
)
def test_a_prompt_over_the_limit_is_refused_with_both_numbers(prompt: Prompt, field: str) -> None:
    with pytest.raises(InvalidRequest, match="at most 90 tokens, has 91") as caught:
        validator().resolve(asking(prompt), (1,) * 91, request_id="r", seed=0)
    assert caught.value.violations[0].field == field


def test_a_prompt_leaves_room_for_one_token() -> None:
    gate = Validator(CARD, RequestLimits(context_token_count=100, prompt_token_count=100), EVERY_FIELD)
    assert gate.resolve(asking(), (1,) * 99, request_id="r", seed=0).row_stop.token_limit == 100
    with pytest.raises(InvalidRequest, match="at most 99 tokens, has 100"):
        gate.resolve(asking(), (1,) * 100, request_id="r", seed=0)


def test_truncation_keeps_the_last_tokens() -> None:
    request = asking(truncate_prompt_token_count=3)
    assert validator().resolve(request, range(200), request_id="r", seed=0).prompt_token_ids == (197, 198, 199)
    assert validator().resolve(request, (1, 2), request_id="r", seed=0).prompt_token_ids == (1, 2)
    with pytest.raises(InvalidRequest, match="at most 90 tokens, has 95"):
        validator().resolve(asking(truncate_prompt_token_count=95), range(200), request_id="r", seed=0)


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="text: has no tokens"):
        validator().resolve(asking(), (), request_id="r", seed=0)


def test_tokens_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"text: must be in tokens \[0, 1000\), is 1000"):
        validator().resolve(asking(), (1, 1000), request_id="r", seed=0)

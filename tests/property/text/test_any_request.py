"""Whatever a client sends is either refused as the client's mistake or runs within the limits."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.contract.errors import FeatureUnsupported, Forbidden, InvalidRequest, RequestError
from headrace.contract.generation import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    OutputOptions,
    TextPrompt,
    TokenPrompt,
    Tool,
    ToolChoiceMode,
    ValidRequest,
)
from headrace.contract.sampling import LengthPenalty, SamplingOptions, StoppingOptions
from headrace.router.model_card import ModelCard
from headrace.router.sampling_ranges import SAMPLING_RANGES
from headrace.router.validation import RequestLimits, Validator

CARD = ModelCard(
    name="m",
    architecture="llama",
    context_token_count=50,
    vocabulary_size=100,
    end_of_sequence_token_ids=(2,),
    chat_template="{{ messages }}",
)
LIMITS = RequestLimits(context_token_count=50, prompt_token_count=40)
FIELDS = frozenset({"sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.seed"})

NUMBER = st.none() | st.floats() | st.sampled_from([0.0, 0.5, 1.0])
COUNT = st.none() | st.integers(1, 9) | st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 60)
FLAG = st.none() | st.booleans()
WORDS = st.lists(st.text(max_size=4), max_size=3).map(tuple)
IDS = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 110), max_size=60).map(tuple)
MESSAGE = st.builds(ChatMessage, role=st.sampled_from(["", "user", "assistant"]), content=st.text(max_size=3))
TOOL = st.builds(Tool, name=st.text(max_size=3), description=st.just(""), parameters=st.just({}))
PROMPT = st.one_of(
    st.none(),
    st.builds(TextPrompt, st.text(max_size=5)),
    st.builds(TokenPrompt, IDS),
    st.builds(
        ChatPrompt,
        messages=st.lists(MESSAGE, max_size=3).map(tuple),
        tools=st.lists(TOOL, max_size=2).map(tuple),
        tool_choice=st.sampled_from([None, *ToolChoiceMode]),
        continue_final_message=st.booleans(),
    ),
)
SAMPLING = st.builds(
    SamplingOptions,
    **dict.fromkeys(SAMPLING_RANGES, NUMBER),
    top_k=COUNT,
    seed=st.none() | st.integers(0, 2**64 - 1),
    logit_bias=st.dictionaries(st.integers(0, 110), st.floats(), max_size=2),
    banned_words=WORDS,
    length_penalty=st.none() | st.builds(LengthPenalty, start_index=st.integers(-1, 2), decay_factor=st.floats()),
)
STOPPING = st.builds(
    StoppingOptions,
    max_new_token_count=COUNT,
    min_new_token_count=COUNT,
    stop_sequences=WORDS,
    stop_token_ids=st.lists(st.integers(0, 110), max_size=3).map(tuple),
    ignore_end_of_sequence=FLAG,
    include_stop_sequence=FLAG,
    time_limit_s=NUMBER,
)
OUTPUT = st.builds(OutputOptions, token_logprobs=FLAG, top_logprob_count=COUNT, prompt_logprobs=FLAG)
REQUEST = st.builds(
    GenerationRequest,
    prompt=PROMPT,
    request_id=st.text(max_size=4),
    sampling=SAMPLING | st.just(SamplingOptions()),
    stopping=STOPPING | st.just(StoppingOptions()),
    output=OUTPUT | st.just(OutputOptions()),
    priority=COUNT,
    completion_count=COUNT,
    best_of=COUNT,
    truncate_prompt_token_count=COUNT,
)

SENSIBLE_REQUEST = st.builds(
    GenerationRequest,
    prompt=st.just(TextPrompt("x")),
    sampling=st.builds(
        SamplingOptions,
        temperature=st.none() | st.floats(0, 2),
        top_p=st.none() | st.floats(0.1, 1),
        top_k=st.none() | st.integers(0, 100),
    ),
    stopping=st.builds(
        StoppingOptions,
        max_new_token_count=st.none() | st.integers(1, 2**31 - 1) | st.integers(1, 60),
        stop_sequences=st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
        ignore_end_of_sequence=FLAG,
    ),
    truncate_prompt_token_count=st.none() | st.integers(1, 60),
)


def outcome(request: GenerationRequest, token_ids: tuple[int, ...]) -> ValidRequest | RequestError:
    validator = Validator(CARD, LIMITS, FIELDS)
    try:
        validator.check(request)
        return validator.resolve(request, token_ids, request_id="r", seed=3)
    except (InvalidRequest, FeatureUnsupported, Forbidden) as error:
        return error


def check(request: GenerationRequest, token_ids: tuple[int, ...]) -> None:
    valid = outcome(request, request.prompt.token_ids if isinstance(request.prompt, TokenPrompt) else token_ids)
    if isinstance(valid, InvalidRequest):
        assert 1 <= len(valid.violations) <= 16
        assert all(violation.field and violation.description for violation in valid.violations)
    elif isinstance(valid, ValidRequest):
        assert 1 <= valid.prompt_token_count <= LIMITS.prompt_token_count
        assert all(0 <= token_id < CARD.vocabulary_size for token_id in valid.prompt_token_ids)
        assert valid.prompt_token_count < valid.row_stop.token_limit <= LIMITS.context_token_count
        assert all(getattr(valid.sampling, name) in allowed for name, allowed in SAMPLING_RANGES.items())
        assert 0 <= valid.sampling.top_k <= CARD.vocabulary_size


@given(request=REQUEST, token_ids=IDS)
def test_a_request_is_refused_or_fits(request: GenerationRequest, token_ids: tuple[int, ...]) -> None:
    check(request, token_ids)


@given(request=SENSIBLE_REQUEST, token_ids=st.lists(st.integers(0, 99), max_size=45).map(tuple))
def test_a_sensible_request_fits(request: GenerationRequest, token_ids: tuple[int, ...]) -> None:
    check(request, token_ids)
    kept_count = min(len(token_ids), request.truncate_prompt_token_count or len(token_ids))
    assert isinstance(outcome(request, token_ids), ValidRequest) == (1 <= kept_count <= LIMITS.prompt_token_count)

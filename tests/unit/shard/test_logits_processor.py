"""Each processor does what Transformers' does, on its own rows alone, and they keep their order."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    ExponentialDecayLengthPenalty,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TypicalLogitsWarper,
)

from headrace.contract.engine import EngineDescription
from headrace.contract.sampling import BannedText, LengthPenalty, RowStopRules, SamplingParams, Watermark
from headrace.contract.step import AdmittedSequence, StepPlan
from headrace.contract.watermark import is_green, threshold_of
from headrace.kernels.logits_filters import is_typical
from headrace.kernels.reference import ReferenceKernels
from headrace.shard.capabilities import NATIVE_FIELDS
from headrace.shard.input_batch import InputBatch
from headrace.shard.logits_processor import LogitsProcessor

KERNELS = ReferenceKernels()
VOCABULARY = 50
ENDS = (7, 9)
PROMPT = (3, 5, 5, 11, 0)
GENERATED = (11, 20, 20, 20, 7, 31)
DESCRIPTION = EngineDescription(
    engine="test",
    architecture="test",
    weight_type="none",
    vocabulary_size=VOCABULARY,
    context_token_count=4096,
    block_size=4096,
    block_count=64,
    steps_in_flight=1,
    supported_fields=NATIVE_FIELDS,
    end_of_sequence_token_ids=ENDS,
)


def admitted(sequence_id: int, sampling: SamplingParams, tokens: Sequence[int], **stopping: int) -> AdmittedSequence:
    return AdmittedSequence(
        sequence_id=sequence_id,
        token_ids=tuple(tokens),
        prompt_token_count=len(PROMPT),
        computed_token_count=0,
        block_ids=(sequence_id,),
        sampling=sampling,
        stopping=RowStopRules(token_limit=4096, end_of_sequence_token_ids=ENDS, **stopping),
    )


def process(logits: torch.Tensor, *sequences: AdmittedSequence) -> torch.Tensor:
    batch = InputBatch(DESCRIPTION)
    chunks = tuple(len(sequence.token_ids) for sequence in sequences)
    plan = StepPlan(step_id=1, admitted=sequences, chunk_rows=tuple(range(len(sequences))), chunk_token_counts=chunks)
    result = logits.clone()
    is_empty = LogitsProcessor(KERNELS, batch, batch.apply(plan).places, logits.argmax(dim=1).numpy()).apply(result)
    assert not is_empty.any()
    return result


def random_logits(row_count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(row_count, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


ORACLES: list[tuple[SamplingParams, dict[str, int], Callable[[], object]]] = [
    (SamplingParams(repetition_penalty=1.3), {}, lambda: RepetitionPenaltyLogitsProcessor(1.3)),
    (SamplingParams(repetition_penalty=0.6), {}, lambda: RepetitionPenaltyLogitsProcessor(0.6)),
    (
        SamplingParams(logit_bias=((0, -2.5), (20, 4.0), (49, 1.0))),
        {},
        lambda: SequenceBiasLogitsProcessor({(0,): -2.5, (20,): 4.0, (49,): 1.0}),
    ),
    (
        SamplingParams(length_penalty=LengthPenalty(start_index=2, decay_factor=1.5)),
        {},
        lambda: ExponentialDecayLengthPenalty((2, 1.5), list(ENDS), len(PROMPT)),
    ),
    (
        SamplingParams(length_penalty=LengthPenalty(start_index=6, decay_factor=1.5)),
        {},
        lambda: ExponentialDecayLengthPenalty((6, 1.5), list(ENDS), len(PROMPT)),
    ),
    (
        SamplingParams(),
        {"min_new_token_count": 7},
        lambda: MinNewTokensLengthLogitsProcessor(len(PROMPT), 7, list(ENDS)),
    ),
    (
        SamplingParams(),
        {"min_new_token_count": 6},
        lambda: MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, list(ENDS)),
    ),
    (
        SamplingParams(
            repetition_penalty=1.2,
            logit_bias=((20, 3.0),),
            length_penalty=LengthPenalty(start_index=0, decay_factor=1.1),
        ),
        {},
        lambda: LogitsProcessorList(
            [
                SequenceBiasLogitsProcessor({(20,): 3.0}),
                RepetitionPenaltyLogitsProcessor(1.2),
                ExponentialDecayLengthPenalty((0, 1.1), list(ENDS), len(PROMPT)),
            ]
        ),
    ),
]


@pytest.mark.parametrize(("sampling", "stopping", "oracle"), ORACLES)
def test_processors_are_those_of_transformers(
    sampling: SamplingParams, stopping: dict[str, int], oracle: Callable[[], Callable[..., torch.Tensor]]
) -> None:
    tokens = (*PROMPT, *GENERATED)
    logits = random_logits()
    expected = oracle()(torch.tensor([tokens]), logits.clone())
    torch.testing.assert_close(process(logits, admitted(1, sampling, tokens, **stopping)), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.8])
@pytest.mark.parametrize("mass", [0.05, 0.4, 0.9, 0.9999])
def test_typical_and_min_p_are_those_of_transformers(temperature: float, mass: float) -> None:
    logits = random_logits(200, seed=3)
    tokens = torch.zeros(200, 1, dtype=torch.int64)
    warm = TemperatureLogitsWarper(temperature)(tokens, logits)
    cases = [
        (SamplingParams(temperature=temperature, typical_p=mass), TypicalLogitsWarper(mass)),
        (SamplingParams(temperature=temperature, min_p=mass), MinPLogitsWarper(mass)),
    ]
    for sampling, oracle in cases:
        found = process(logits[:60], *(admitted(row, sampling, PROMPT) for row in range(60)))
        expected = oracle(tokens[:60], warm[:60].clone())
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found[found.isfinite()], logits[:60][found.isfinite()])


def test_min_p_comes_after_typical_p() -> None:
    sampling = SamplingParams(temperature=0.8, typical_p=0.5, min_p=0.3)
    logits = random_logits(seed=5)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    chain = LogitsProcessorList([TemperatureLogitsWarper(0.8), TypicalLogitsWarper(0.5), MinPLogitsWarper(0.3)])
    expected = chain(tokens, logits.clone())
    assert torch.equal(process(logits, admitted(1, sampling, PROMPT)).isfinite(), expected.isfinite())


def test_filters_leave_greedy_rows_alone() -> None:
    sampling = SamplingParams(temperature=0.0, typical_p=0.1, min_p=0.9)
    logits = random_logits()
    assert torch.equal(process(logits, admitted(1, sampling, PROMPT)), logits)


def test_typical_p_looks_past_its_guess_in_a_flat_distribution() -> None:
    """More tokens are needed than the thousand that are looked at first."""
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1)) * 0.1
    kept = is_typical(logits, torch.ones(2), torch.tensor([0.7, 0.001]))
    expected = TypicalLogitsWarper(0.7)(torch.zeros(1, 1), logits[:1].clone()).isfinite()
    assert kept[0].sum() > 1024
    assert (kept[0] != expected[0]).sum() <= 1  # sums in another order may differ by the token on the border
    assert kept[1].sum() == int(TypicalLogitsWarper(0.001)(torch.zeros(1, 1), logits[1:].clone()).isfinite().sum())


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 0.7), (-1.5, 2.0)])
def test_frequency_and_presence_count_generated_tokens_alone(frequency: float, presence: float) -> None:
    """As OpenAI defines them: logit - count * frequency - (count > 0) * presence. Token 5 is in the prompt twice."""
    sampling = SamplingParams(frequency_penalty=frequency, presence_penalty=presence)
    logits = random_logits()
    expected = logits.clone()
    for token_id in set(GENERATED):
        expected[0, token_id] -= GENERATED.count(token_id) * frequency + presence
    torch.testing.assert_close(process(logits, admitted(1, sampling, (*PROMPT, *GENERATED))), expected)


def test_a_length_penalty_never_overflows() -> None:
    sampling = SamplingParams(length_penalty=LengthPenalty(start_index=0, decay_factor=10.0))
    logits = random_logits()
    logits[0, ENDS[0]] = 0.0
    found = process(logits, admitted(1, sampling, (*PROMPT, *([1] * 1000))))
    assert found.isfinite().all()
    assert found[0, ENDS[0]] == 0.0
    assert found.argmax() == ENDS[1]


def test_extreme_penalties_stay_finite() -> None:
    sampling = SamplingParams(repetition_penalty=1e-38)
    logits = random_logits()
    assert process(logits, admitted(1, sampling, PROMPT)).isfinite().all()


def test_rows_of_many_lengths_have_no_phantom_tokens() -> None:
    """A short row's counts are padded to the longest one's; no token may be penalized for the padding."""
    sampling = SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0)
    logits = random_logits(2)
    rows = admitted(0, sampling, (4, 4, 4, 4, 4)), admitted(1, sampling, (*PROMPT, *range(20, 50)))
    found = process(logits, *rows)
    changed = (found[0] != logits[0]).nonzero().flatten().tolist()
    assert changed == [4]


def test_a_row_without_a_token_left_is_told() -> None:
    batch = InputBatch(DESCRIPTION)
    banned = SamplingParams(banned_text=BannedText(state_count=0, token_ids=tuple(range(VOCABULARY))))
    plan = StepPlan(
        step_id=1,
        admitted=(admitted(1, banned, PROMPT), admitted(2, SamplingParams(), PROMPT)),
        chunk_rows=(0, 1),
        chunk_token_counts=(len(PROMPT),) * 2,
    )
    logits = random_logits(2)
    is_empty = LogitsProcessor(KERNELS, batch, batch.apply(plan).places, logits.argmax(dim=1).numpy()).apply(logits)
    assert is_empty.tolist() == [True, False]
    assert torch.equal(logits[1], random_logits(2)[1])


def test_banned_texts_follow_their_automaton() -> None:
    """Token 1 starts state 0, token 2 moves it to state 1, in which tokens 3 and 4 are barred; 8 is always barred."""
    banned = BannedText(
        state_count=2,
        token_ids=(8,),
        neutral_token_ids=(6,),
        start_token_ids=(1,),
        start_states=(0,),
        move_states=(0,),
        move_token_ids=(2,),
        move_next_states=(1,),
        end_states=(1, 1),
        end_token_ids=(3, 4),
    )
    sampling = SamplingParams(banned_text=banned)
    cases = {(1,): [8], (1, 2): [3, 4, 8], (1, 6, 2, 6): [3, 4, 8], (1, 2, 5): [8], (2,): [8], (1, 1, 2): [3, 4, 8]}
    for generated, barred in cases.items():
        found = process(random_logits(), admitted(1, sampling, (*PROMPT, *generated)))
        assert (found[0] == -torch.inf).nonzero().flatten().tolist() == barred, generated


def test_a_watermark_raises_the_green_tokens_of_the_last_one() -> None:
    key = 2**63 + 12345
    sampling = SamplingParams(temperature=0.0, watermark=Watermark(key=key, gamma=0.3, delta=1.5))
    logits = random_logits()
    found = process(logits, admitted(1, sampling, (*PROMPT, *GENERATED))) - logits
    threshold = threshold_of(0.3)
    expected = [
        1.5 if is_green(token_id, previous_token_id=GENERATED[-1], key=key, threshold=threshold) else 0.0
        for token_id in range(VOCABULARY)
    ]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert 0 < sum(expected) < 1.5 * VOCABULARY


SAMPLINGS = st.builds(
    SamplingParams,
    temperature=st.sampled_from((0.0, 0.5, 1.0)),
    min_p=st.sampled_from((0.0, 0.2)),
    typical_p=st.sampled_from((1.0, 0.6)),
    repetition_penalty=st.sampled_from((1.0, 1.3, 0.7)),
    frequency_penalty=st.sampled_from((0.0, 0.4, -1.0)),
    presence_penalty=st.sampled_from((0.0, 1.1)),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-9, 9, width=32), max_size=12).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    length_penalty=st.none() | st.just(LengthPenalty(start_index=1, decay_factor=1.4)),
    banned_text=st.none() | st.just(BannedText(state_count=0, token_ids=(2, 30))),
    watermark=st.none() | st.builds(Watermark, key=st.integers(1, 3), gamma=st.just(0.5), delta=st.just(2.0)),
)
ROWS = st.lists(
    st.tuples(SAMPLINGS, st.lists(st.integers(0, VOCABULARY - 1), max_size=90), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, steps=st.lists(st.integers(0, VOCABULARY - 1), max_size=12))
def test_a_row_never_depends_on_the_others_or_on_its_history(
    rows: list[tuple[SamplingParams, list[int], int]], steps: list[int]
) -> None:
    """Alone and admitted anew with all its tokens, or in a batch that grew token by token: the same logits."""
    batch = InputBatch(DESCRIPTION)
    sequences = [
        admitted(index, sampling, (*PROMPT, *generated), min_new_token_count=least)
        for index, (sampling, generated, least) in enumerate(rows)
    ]
    plan = StepPlan(
        step_id=1,
        admitted=tuple(sequences),
        chunk_rows=tuple(range(len(rows))),
        chunk_token_counts=tuple(len(sequence.token_ids) for sequence in sequences),
    )
    places = batch.apply(plan).places
    for token_id in steps:
        token_ids = np.array([(token_id + row) % VOCABULARY for row in range(len(rows))])
        batch.columns.append_tokens(places, batch.columns.token_counts[places], token_ids)
        batch.columns.processors.append_tokens(places, token_ids)
    logits = random_logits(len(rows))
    together = logits.clone()
    LogitsProcessor(KERNELS, batch, places, logits.argmax(dim=1).numpy()).apply(together)
    for row, sequence in enumerate(sequences):
        grown = (*sequence.token_ids, *((token_id + row) % VOCABULARY for token_id in steps))
        least = sequence.stopping.min_new_token_count
        alone = process(logits[row : row + 1], admitted(1, sequence.sampling, grown, min_new_token_count=least))
        assert torch.equal(alone[0], together[row])

"""One request between its admission and its last event: its completions, its clockwork and its reader."""

import math
from collections.abc import Iterable
from dataclasses import replace

from headrace.contract.errors import HeadraceError, InvalidRequest, RowFailed
from headrace.contract.generation import (
    CompletionEnd,
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    Timings,
    TokenLogprob,
    Usage,
    ValidRequest,
)
from headrace.contract.step import CONSTRAINT_TOO_COMPLEX, NO_TOKEN_LEFT, RowError
from headrace.router.active_completion import ActiveCompletion
from headrace.router.admission import Permit
from headrace.router.output_stream import OutputStream
from headrace.router.prompt_logprobs import PromptLogprobs
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.tokenizer import Tokenizer


class ActiveRequest:
    """Turns the tokens of its sequences, one for each completion, into the events of one stream.

    Outlives replicas: when one is lost, the sequences move with their tokens
    and the texts go on where they stopped.

    With `best_of`, nothing but the start reaches the reader before all
    completions have ended, since nobody knows which of them he will get.
    """

    __slots__ = (
        "_completions",
        "_first_token_s",
        "_last_token_s",
        "_prompt_logprobs",
        "_started_s",
        "arrival_s",
        "permit",
        "request",
        "stream",
    )

    def __init__(
        self, request: ValidRequest, sequences: Iterable[Sequence], tokenizer: Tokenizer, permit: Permit | None
    ) -> None:
        """Takes a sequence for each completion that is to be generated, in order of their indices."""
        self.request = request
        self.permit = permit
        """The places in the waiting room; None for a probe, which does not queue."""
        self.stream = OutputStream(is_held=request.is_ranked)
        self._completions = {
            sequence.sequence_id: ActiveCompletion(
                index=index,
                sequence=sequence,
                tokenizer=tokenizer,
                stream=self.stream,
                writes_logprobs=request.logprobs.sampled,
            )
            for index, sequence in enumerate(sequences)
        }
        self._prompt_logprobs = PromptLogprobs(tokenizer, request.prompt_token_ids) if request.logprobs.prompt else None
        self.arrival_s = self._first.sequence.arrival_s
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.stream.is_closed

    @property
    def has_sent_tokens(self) -> bool:
        """Whether the reader may have seen a token."""
        return self.generated_token_count > 0 and not self.stream.is_held

    @property
    def generated_token_count(self) -> int:
        """Generated tokens over all completions."""
        return sum(completion.generated_count for completion in self._completions.values())

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The sequence of each completion, in order of their indices."""
        return tuple(completion.sequence for completion in self._completions.values())

    @property
    def open_sequences(self) -> tuple[Sequence, ...]:
        """Those of the completions that have not ended."""
        return tuple(completion.sequence for completion in self._completions.values() if completion.end is None)

    def start(self, now_s: float) -> None:
        """Notes that the first step of a sequence was planned. Call once for each, replays left out."""
        self._note_start(now_s)
        if self._prompt_logprobs is None:
            self._announce()
        if self.permit is not None:
            self.permit.start()

    def advance(self, update: SequenceUpdate, now_s: float) -> bool:
        """Takes the news of a sequence. Returns whether its completion is over; `has_ended` tells of the request.

        An error of one sequence ends the request: half an answer would be none.
        """
        completion = self._completions[update.sequence.sequence_id]
        if self._prompt_logprobs is not None and completion is self._first:
            self._take_prompt(self._prompt_logprobs, update)
        if update.token_ids:
            if self._first_token_s is None:
                self._first_token_s = now_s
            self._last_token_s = now_s
        completion.advance(update)
        if completion.end is not None:
            if not self.open_sequences:
                self._close()
            return True
        if update.error is not None:
            self.fail(_failure(update.error))
        return self.stream.is_closed

    def finish(self, reason: FinishReason, now_s: float) -> None:
        """Ends the completions that go on normally, each with what it has."""
        if self.has_ended:
            return
        self._note_start(now_s)
        self._announce()
        if self.permit is not None:
            self.permit.release()
        for completion in self._completions.values():
            completion.finish(reason)
        self._close()

    def fail(self, error: HeadraceError) -> None:
        """Ends the request with an error."""
        self.stream.fail(error)

    def summary(self) -> GenerationFinished:
        """Returns what there is to say of the request so far, with the ends of the completions that have one."""
        return GenerationFinished(
            ends=self._ends(),
            usage=Usage(
                prompt_token_count=self.request.prompt_token_count,
                cached_token_count=self._first.sequence.cached_token_count,
                generated_token_count=self.generated_token_count,
                drafted_token_count=sum(sequence.drafted_token_count for sequence in self.sequences),
                accepted_token_count=sum(sequence.accepted_token_count for sequence in self.sequences),
            ),
            timings=self._timings(),
        )

    @property
    def _first(self) -> ActiveCompletion:
        return next(iter(self._completions.values()))

    def _take_prompt(self, prompt: PromptLogprobs, update: SequenceUpdate) -> None:
        """Announces the start when the prompt's log-probabilities are there, which the announcement brings."""
        prompt.take(update)
        if not prompt.is_computed or self.stream.is_started:
            return
        entries = prompt.entries
        if entries is None:
            self.fail(RowFailed("the model server failed on this request", metadata={"cause": "PROMPT_LOGPROBS"}))
        else:
            self._announce(entries)

    def _note_start(self, now_s: float) -> None:
        if self._started_s is None:
            self._started_s = now_s

    def _announce(self, prompt_logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """Tells the reader of the start, once."""
        if self.stream.is_started:
            return
        self.stream.put_started(
            GenerationStarted(
                request_id=self.request.request_id,
                model=self.request.model,
                prompt_token_count=self.request.prompt_token_count,
                cached_token_count=self._first.sequence.cached_token_count,
                seed=self.request.sampling.seed,
                prompt_logprobs=prompt_logprobs,
            )
        )

    def _close(self) -> None:
        """Tells the reader of the end, when every completion has one."""
        summary = self.summary()
        self.stream.finish(replace(summary, ends=self._best_ends()) if self.request.is_ranked else summary)

    def _ends(self) -> tuple[CompletionEnd, ...]:
        return tuple(completion.end for completion in self._completions.values() if completion.end is not None)

    def _best_ends(self) -> tuple[CompletionEnd, ...]:
        """Returns the ends of the likeliest completions and lets the reader have these.

        They are compared by the mean, since a sum would prefer the shortest. One
        without a token comes last, and the lower index wins among equals.
        """
        means = [completion.mean_logprob for completion in self._completions.values()]
        ranked = sorted(range(len(means)), key=lambda index: _unlikeliness(means[index]))
        best = ranked[: self.request.completion_count]
        self.stream.release(best)
        ends = self._ends()
        return tuple(replace(ends[index], index=place, mean_logprob=means[index]) for place, index in enumerate(best))

    def _timings(self) -> Timings:
        started_s = self.arrival_s if self._started_s is None else self._started_s
        first_s = started_s if self._first_token_s is None else self._first_token_s
        last_s = first_s if self._last_token_s is None else self._last_token_s
        return Timings(queued_s=started_s - self.arrival_s, prefill_s=first_s - started_s, decode_s=last_s - first_s)


def _unlikeliness(mean_logprob: float | None) -> float:
    return math.inf if mean_logprob is None else -mean_logprob


def _failure(error: RowError) -> HeadraceError:
    """Returns what the caller is told of a row that failed: what it forbade is its own, the rest is ours."""
    if error.reason == CONSTRAINT_TOO_COMPLEX:
        return InvalidRequest.of("constraint", "one of its tokens takes more work than is allowed; make it simpler")
    if error.reason == NO_TOKEN_LEFT:
        return InvalidRequest.of(
            "sampling", "no token is left to draw: the banned words, the constraint and the least length bar them all"
        )
    return RowFailed("the model server failed on this request", metadata={"cause": error.reason})

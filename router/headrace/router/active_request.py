"""One request between its admission and its last event: its text, its clockwork and its reader."""

from headrace.contract.errors import HeadraceError, RowFailed
from headrace.contract.generation import (
    CompletionEnd,
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    Timings,
    Usage,
    ValidRequest,
)
from headrace.contract.step import RowEnd, RowLogprobs
from headrace.router.admission import Permit
from headrace.router.detokenizer import Detokenizer
from headrace.router.logprob_writer import LogprobWriter
from headrace.router.output_stream import OutputStream
from headrace.router.scheduler import SequenceUpdate
from headrace.router.sequence import Sequence
from headrace.router.stopping import StopMatcher
from headrace.router.tokenizer import Tokenizer


class ActiveRequest:
    """Turns the tokens of one sequence into the events of one stream.

    Outlives replicas: when one is lost, the sequence moves with its tokens and
    the text goes on where it stopped.
    """

    __slots__ = (
        "_detokenizer",
        "_first_token_s",
        "_generated_count",
        "_last_token_s",
        "_logprobs",
        "_matcher",
        "_started_s",
        "_stop_token_id",
        "arrival_s",
        "permit",
        "request",
        "sequence",
        "stream",
    )

    def __init__(self, request: ValidRequest, sequence: Sequence, tokenizer: Tokenizer, permit: Permit | None) -> None:
        self.request = request
        self.sequence = sequence
        self.permit = permit
        """The place in the waiting room; None for a probe, which does not queue."""
        self.arrival_s = sequence.arrival_s
        self.stream = OutputStream()
        self._detokenizer = Detokenizer(tokenizer, include_special_tokens=request.include_special_tokens)
        stop = request.text_stop
        self._matcher = (
            StopMatcher(stop.stop_sequences, include=stop.include_stop_sequence) if stop.stop_sequences else None
        )
        self._logprobs = (
            LogprobWriter(tokenizer, include_special_tokens=request.include_special_tokens)
            if request.logprobs.sampled
            else None
        )
        self._started_s: float | None = None
        self._first_token_s: float | None = None
        self._last_token_s: float | None = None
        self._generated_count = 0
        self._stop_token_id: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.stream.is_closed

    @property
    def has_sent_tokens(self) -> bool:
        """Whether the reader may have seen a token."""
        return self._generated_count > 0

    def start(self, now_s: float) -> None:
        """Notes that the first step was planned. Only the first call counts: a replay is no second start."""
        if self._started_s is not None:
            return
        self._started_s = now_s
        if self.permit is not None:
            self.permit.release(has_started=True)
        self.stream.put_started(
            GenerationStarted(
                request_id=self.request.request_id,
                model=self.request.model,
                prompt_token_count=self.request.prompt_token_count,
                cached_token_count=self.sequence.cached_token_count,
                seed=self.request.sampling.seed,
            )
        )

    def advance(self, update: SequenceUpdate, now_s: float) -> None:
        """Takes new tokens and, if these end the completion, ends it. Check `has_ended` after."""
        if update.token_ids:
            if self._first_token_s is None:
                self._first_token_s = now_s
            self._last_token_s = now_s
            if self._matcher is None:
                self._generated_count += len(update.token_ids)
                self._put(self._detokenizer.push(update.token_ids), update.token_ids, update.logprobs)
            else:
                self._advance_matching(self._matcher, update)
        if self.has_ended:
            return
        if update.error is not None:
            self.fail(RowFailed("the model server failed on this request", metadata={"cause": update.error.reason}))
        elif update.end is not None:
            if update.end is not RowEnd.TOKEN_LIMIT:
                self._stop_token_id = update.token_ids[-1]
            self.finish(self._reason_of(update.end), now_s)

    def finish(self, reason: FinishReason, now_s: float) -> None:
        """Ends the completion normally; what was withheld for a stop sequence is released."""
        if self.has_ended:
            return
        self.start(now_s)
        rest = self._detokenizer.flush()
        if self._matcher is not None:
            rest = self._matcher.push(rest) + self._matcher.flush()
            if self._matcher.matched is not None:
                self._finish_matched(self._matcher.matched, rest)
                return
        self._close(
            rest,
            CompletionEnd(
                reason=reason, generated_token_count=self._generated_count, stop_token_id=self._stop_token_id
            ),
        )

    def fail(self, error: HeadraceError) -> None:
        """Ends the request with an error."""
        self.stream.fail(error)

    def _advance_matching(self, matcher: StopMatcher, update: SequenceUpdate) -> None:
        """Pushes token by token, so that nothing after the token that completed a stop sequence counts."""
        token_ids = update.token_ids
        texts: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            self._generated_count += 1
            text = self._detokenizer.push((token_id,))
            if self._generated_count <= self.request.row_stop.min_new_token_count:
                texts.append(text)
                continue
            texts.append(matcher.push(text))
            if matcher.matched is not None:
                self._put("", token_ids[:count], update.logprobs)
                self._finish_matched(matcher.matched, "".join(texts))
                return
        self._put("".join(texts), token_ids, update.logprobs)

    def _put(self, text: str, token_ids: tuple[int, ...], reports: tuple[RowLogprobs, ...]) -> None:
        if self._logprobs is None:
            self.stream.put_tokens(text, token_ids)
        else:
            self.stream.put_tokens(text, token_ids, self._logprobs.write(token_ids, reports))

    def _finish_matched(self, stop_sequence: str, rest: str) -> None:
        self._close(
            rest,
            CompletionEnd(
                reason=FinishReason.STOP_SEQUENCE,
                generated_token_count=self._generated_count,
                stop_sequence=stop_sequence,
            ),
        )

    def _close(self, rest: str, end: CompletionEnd) -> None:
        if rest:
            self.stream.put_tokens(rest, ())
        self.stream.finish(
            GenerationFinished(
                ends=(end,),
                usage=Usage(
                    prompt_token_count=self.request.prompt_token_count,
                    cached_token_count=self.sequence.cached_token_count,
                    generated_token_count=self._generated_count,
                ),
                timings=self._timings(),
            )
        )

    def _timings(self) -> Timings:
        started_s = self.arrival_s if self._started_s is None else self._started_s
        first_s = started_s if self._first_token_s is None else self._first_token_s
        last_s = first_s if self._last_token_s is None else self._last_token_s
        return Timings(queued_s=started_s - self.arrival_s, prefill_s=first_s - started_s, decode_s=last_s - first_s)

    def _reason_of(self, end: RowEnd) -> FinishReason:
        if end is RowEnd.END_OF_SEQUENCE:
            return FinishReason.END_OF_SEQUENCE
        if end is RowEnd.STOP_TOKEN:
            return FinishReason.STOP_TOKEN
        if self._generated_count >= self.request.max_new_token_count:
            return FinishReason.LENGTH
        return FinishReason.CONTEXT_LIMIT

"""One completion in the making: turns the tokens of one sequence into text until a rule ends it."""

from itertools import islice

from headrace.contract.generation import CompletionEnd, FinishReason
from headrace.contract.step import RowEnd, RowLogprobs
from headrace.router.chat_output.formats import marks_of
from headrace.router.chat_output.parser import ChatOutputParser, ChatPieces
from headrace.router.detokenizer import Detokenizer
from headrace.router.logprob_writer import LogprobWriter
from headrace.router.output_stream import OutputStream
from headrace.router.sequence import Sequence
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.stopping import StopMatcher
from headrace.router.tokenizer import Tokenizer


class ActiveCompletion:
    """Follows one sequence of a request and writes into the stream that all of them share."""

    __slots__ = (
        "_detokenizer",
        "_index",
        "_logprob_sum",
        "_logprobs",
        "_matcher",
        "_parser",
        "_stop_token_id",
        "_stream",
        "end",
        "generated_count",
        "sequence",
    )

    def __init__(
        self, *, index: int, sequence: Sequence, tokenizer: Tokenizer, stream: OutputStream, writes_logprobs: bool
    ) -> None:
        """Starts without a token.

        Args:
            index: Among the completions of the request.
            sequence: Where the tokens come from.
            tokenizer: Of the model.
            stream: Where text and tokens go.
            writes_logprobs: Whether the reader wants those of the tokens.
        """
        request = sequence.request
        self.sequence = sequence
        self.end: CompletionEnd | None = None
        """Why it ended; None while it goes on."""
        self.generated_count = 0
        self._index = index
        self._stream = stream
        output = request.chat_output
        self._detokenizer = Detokenizer(
            tokenizer,
            include_special_tokens=request.include_special_tokens,
            spelled_tokens=marks_of(output.tool_format, output.reasoning_format),
        )
        # The prompt grows from turn to turn, so a caller who gives every turn the same id gets other ids of calls.
        id_base = f"{request.request_id} {request.prompt_token_count} {index}"
        self._parser = None if output.is_empty else ChatOutputParser(output, id_base)
        stop = request.text_stop
        self._matcher = (
            StopMatcher(stop.stop_sequences, include=stop.include_stop_sequence) if stop.stop_sequences else None
        )
        self._logprobs = (
            LogprobWriter(tokenizer, include_special_tokens=request.include_special_tokens) if writes_logprobs else None
        )
        self._logprob_sum = 0.0
        self._stop_token_id: int | None = None

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability of its tokens, as far as the engine reported them; None without a token."""
        return self._logprob_sum / self.generated_count if self.generated_count else None

    def advance(self, update: SequenceUpdate) -> None:
        """Takes new tokens and, if these end the completion, ends it. Check `end` after."""
        if update.token_ids:
            if self._matcher is None and (self._parser is None or not self._parser.may_complete):
                text = self._detokenizer.push(update.token_ids)
                if self._parser is not None:
                    text = self._told_apart(text)
                self._take(text, update.token_ids, update.logprobs)
            else:
                self._advance_watching(update)
        if self.end is None and update.end is not None:
            if update.end is not RowEnd.TOKEN_LIMIT:
                self._stop_token_id = update.token_ids[-1]
            self.finish(self._reason_of(update.end))

    def finish(self, reason: FinishReason) -> None:
        """Ends the completion normally; what was withheld for a stop sequence is released. Safe to repeat."""
        if self.end is not None:
            return
        rest = self._detokenizer.flush()
        stop_sequence = None
        if self._matcher is not None:
            rest = self._matcher.push(rest) + self._matcher.flush()
            stop_sequence = self._matcher.matched
        self._close(rest, reason, stop_sequence)

    def _advance_watching(self, update: SequenceUpdate) -> None:
        """Reads token by token, so that nothing after the token whose text ended the completion counts."""
        token_ids, matcher = update.token_ids, self._matcher
        least_count = self.sequence.request.row_stop.min_new_token_count
        texts: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            text = self._detokenizer.push((token_id,))
            may_end = self.generated_count + count > least_count
            if matcher is not None and may_end:
                text = matcher.push(text)
            texts.append(self._told_apart(text))
            stop_sequence = None if matcher is None else matcher.matched
            if stop_sequence is not None or (self._has_only_call and self.generated_count + count >= least_count):
                self._take("".join(texts), token_ids[:count], update.logprobs)
                self._close("", FinishReason.TOOL_CALL, stop_sequence)
                return
        self._take("".join(texts), token_ids, update.logprobs)

    @property
    def _has_only_call(self) -> bool:
        """Whether the one tool call that the request allows has come."""
        return self._parser is not None and self._parser.is_complete

    def _take(self, text: str, token_ids: tuple[int, ...], reports: tuple[RowLogprobs, ...]) -> None:
        """Counts tokens and passes them on. What is reported beyond them came after the end."""
        self.generated_count += len(token_ids)
        if reports:
            reports = tuple(report for report in reports if not report.is_prompt)
            values = (value for report in reports for value in report.logprobs)
            self._logprob_sum += sum(islice(values, len(token_ids)))
        logprobs = () if self._logprobs is None else self._logprobs.write(token_ids, reports)
        self._stream.put_tokens(text, token_ids, logprobs, index=self._index)

    def _told_apart(self, text: str) -> str:
        """Returns what is text of it, and passes the rest on, if the request wants them apart."""
        return text if self._parser is None else self._put_pieces(self._parser.push(text))

    def _put_pieces(self, pieces: ChatPieces) -> str:
        self._stream.put_pieces(pieces.reasoning, pieces.tool_calls, index=self._index)
        return pieces.text

    def _close(self, rest: str, reason: FinishReason, stop_sequence: str | None) -> None:
        rest = self._told_apart(rest)
        if self._parser is not None:
            rest += self._put_pieces(self._parser.flush())
        if rest:
            self._stream.put_tokens(rest, (), index=self._index)
        if stop_sequence is not None:
            reason, self._stop_token_id = FinishReason.STOP_SEQUENCE, None
        self.end = CompletionEnd(
            index=self._index,
            reason=reason,
            generated_token_count=self.generated_count,
            seed=self.sequence.request.sampling.seed,
            stop_sequence=stop_sequence or "",
            stop_token_id=self._stop_token_id,
        )

    def _reason_of(self, end: RowEnd) -> FinishReason:
        if end is RowEnd.END_OF_SEQUENCE:
            return FinishReason.END_OF_SEQUENCE
        if end is RowEnd.STOP_TOKEN:
            return FinishReason.STOP_TOKEN
        if self.generated_count >= self.sequence.request.max_new_token_count:
            return FinishReason.LENGTH
        return FinishReason.CONTEXT_LIMIT

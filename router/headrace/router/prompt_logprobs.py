"""Collects the log-probabilities of one prompt, which come in as many pieces as it has chunks."""

from headrace.contract.generation import TokenLogprob
from headrace.router.logprob_writer import LogprobWriter
from headrace.router.sequence_update import SequenceUpdate
from headrace.router.tokenizer import Tokenizer


class PromptLogprobs:
    """Grows until the first generated token, which comes after the whole prompt.

    A sequence that is set aside before that computes its prompt anew, so each
    admission begins from nothing: no token is reported twice and none is left out.
    """

    __slots__ = ("_admission_count", "_entries", "_prompt", "_tokenizer", "_writer", "is_computed")

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt_token_ids
        self.is_computed = False
        """Whether the whole prompt has been computed."""
        self._begin(0)

    @property
    def entries(self) -> tuple[TokenLogprob, ...] | None:
        """An entry for each prompt token, in order; None as long as the engine has not reported all of them."""
        return tuple(self._entries) if len(self._entries) == len(self._prompt) else None

    def take(self, update: SequenceUpdate) -> None:
        """Takes the news of the sequence that computes the prompt. Does nothing once it is computed."""
        if self.is_computed:
            return
        # All steps of one admission are answered before the next one is planned.
        if update.sequence.admission_count != self._admission_count:
            self._begin(update.sequence.admission_count)
        for report in update.logprobs:
            if report.is_prompt:
                first = len(self._entries)
                token_ids = self._prompt[first : first + len(report.logprobs)]
                self._entries += self._writer.write(token_ids, (report,))
        self.is_computed = bool(update.token_ids)

    def _begin(self, admission_count: int) -> None:
        self._admission_count = admission_count
        # Special tokens are part of a prompt's text; it is the completion that leaves them out.
        self._writer = LogprobWriter(self._tokenizer, include_special_tokens=True)
        self._entries = [self._writer.write_first(self._prompt[0])]

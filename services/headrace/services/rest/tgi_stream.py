"""Writes Text Generation Inference's stream: one event for each token, the last with the whole text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.client.operations import Model
from headrace.contract.errors import HeadraceError
from headrace.services.rest import tgi_answer as answer
from headrace.services.rest.openai_answer import aborted
from headrace.v1 import generate_service_pb2 as pb

_REASONS = {
    pb.FINISH_REASON_END_OF_SEQUENCE: "eos_token",
    pb.FINISH_REASON_STOP_TOKEN: "eos_token",
    pb.FINISH_REASON_STOP_SEQUENCE: "stop_sequence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """What tells a last token before the router has said that it is one."""

    model: Model
    max_new_token_count: int | None
    stop_sequences: Sequence[str]

    def may_follow(self, token_id: int, text: str, generated_count: int, prompt_count: int) -> bool:
        """Whether the completion may be over with this token."""
        return (
            token_id in self.model.end_of_sequence_token_ids
            or generated_count == self.max_new_token_count
            or prompt_count + generated_count >= self.model.limits.context_token_count
            or text.endswith(tuple(self.stop_sequences))
        )


class TokenWriter:
    """Writes an event for each token.

    TGI puts the whole text and the details into the event of the last token. So a
    token that may be the last is held back until the router says whether it is;
    all others go out at once.
    """

    def __init__(self, endings: Endings, *, prompt: str) -> None:
        self._endings = endings
        self._text = prompt
        self._prompt_count = 0
        self._count = 0
        self._held: dict[str, Any] | None = None

    def started(self, started: pb.GenerationStarted) -> bytes:
        """Writes nothing: TGI's stream begins with a token."""
        self._prompt_count = started.prompt_token_count
        return b""

    def delta(self, delta: pb.GenerationDelta) -> bytes:
        """Returns an event for each token; the text of several belongs to the last of them."""
        events = [self._release()]
        last = len(delta.logprobs) - 1
        for place, logprob in enumerate(delta.logprobs):
            text = delta.text if place == last else ""
            self._text += text
            event = self._event(logprob, text)
            if self._endings.may_follow(logprob.token_id, self._text, self._count, self._prompt_count):
                events.append(self._release())
                self._held = event
            else:
                events.append(_encode(event))
        return b"".join(events)

    def finished(self, finished: pb.GenerationFinished) -> bytes:
        """Returns the last event.

        Raises:
            RequestAborted: someone ended the request.
        """
        end = finished.ends[0]
        if end.reason == pb.FINISH_REASON_CANCELLED:
            raise aborted()
        # A time limit gives no sign before; then the text is told with a token that adds nothing to it.
        event = self._held or {
            "index": self._count,
            "token": {"id": end.stop_token_id, "text": "", "logprob": 0.0, "special": True},
        }
        event["generated_text"] = self._text
        event["details"] = {
            "finish_reason": _REASONS.get(end.reason, "length"),
            "generated_tokens": end.generated_token_count,
            "seed": end.seed,
            "input_length": self._prompt_count,
        }
        return _encode(event)

    def failed(self, error: HeadraceError) -> bytes:
        """Returns the error as an event."""
        return b"data:" + orjson.dumps(answer.error_body(error)) + b"\n\n"

    def _event(self, logprob: pb.TokenLogprob, text: str) -> dict[str, Any]:
        self._count += 1
        special_ids = self._endings.model.end_of_sequence_token_ids
        event: dict[str, Any] = {
            "index": self._count,
            "token": {
                "id": logprob.token_id,
                "text": logprob.text if not text and logprob.token_id in special_ids else text,
                "logprob": logprob.logprob,
                "special": logprob.token_id in special_ids,
            },
            "generated_text": None,
            "details": None,
        }
        if logprob.top:
            event["top_tokens"] = [
                {"id": rival.token_id, "text": rival.text, "logprob": rival.logprob, "special": False}
                for rival in logprob.top
            ]
        return event

    def _release(self) -> bytes:
        held, self._held = self._held, None
        return b"" if held is None else _encode(held)


def _encode(event: dict[str, Any]) -> bytes:
    return b"data:" + orjson.dumps(event) + b"\n\n"

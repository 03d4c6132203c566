"""The gate between what a client asked and what can run."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from headrace.contract.chat_output import ChatOutput
from headrace.contract.errors import FeatureUnsupported, Forbidden, InvalidRequest
from headrace.contract.generation import ChatPrompt, GenerationRequest, Prompt, ToolChoiceMode, ValidRequest
from headrace.contract.sampling import BannedText, LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.router.field_checks import RequestLimits, find_violations, out_of_range, prompt_field
from headrace.router.model_card import ModelCard
from headrace.router.request_grammars import Hold, called_tools
from headrace.router.sampling_ranges import SAMPLING_RANGES
from headrace.router.tenant import private_salt
from headrace.router.watermarks import Watermarks

__all__ = ["ROUTER_FIELDS", "RequestLimits", "Validator", "deliverable_fields"]

ROUTER_FIELDS = frozenset(
    {
        "add_special_tokens",
        "cache_salt",
        "completion_count",
        "model",
        "output.include_special_tokens",
        "priority",
        "request_id",
        "stopping.ignore_end_of_sequence",
        "stopping.include_stop_sequence",
        "stopping.max_new_token_count",
        "stopping.stop_sequences",
        "stopping.time_limit",
        "truncate_prompt_token_count",
    }
)
"""Fields that the router takes care of, whatever the engine."""

_SAMPLING_OPTIONS = (*SAMPLING_RANGES, "top_k")
"""Options that are one number and may have a default."""

_VIOLATION_LIMIT = 16
"""More would not fit into the headers of a status."""


def deliverable_fields(engine_fields: frozenset[str], *, has_watermarks: bool = False) -> frozenset[str]:
    """Returns the fields that a request may use: those of the router, and of the engine what the router can carry."""
    fields = engine_fields | ROUTER_FIELDS
    if not has_watermarks:
        fields -= {"watermark"}
    return fields | {"best_of"} if "output.token_logprobs" in fields else fields - {"best_of"}


class Validator:
    """Checks requests for one model on one kind of engine. Cheap to make, without state."""

    __slots__ = ("_card", "_limits", "_watermarks", "default_sampling", "supported_fields")

    def __init__(
        self,
        card: ModelCard,
        limits: RequestLimits,
        supported_fields: frozenset[str],
        watermarks: Watermarks | None = None,
    ) -> None:
        """Takes the engine's fields, as paths in GenerateRequest; the router's own are added."""
        self._card = card
        self._limits = limits
        self._watermarks = watermarks or Watermarks()
        if not card.end_of_sequence_token_ids:
            supported_fields -= {"constraint"}  # with no token that ends it, no completion could be complete
        fields = deliverable_fields(supported_fields, has_watermarks=bool(self._watermarks.keys))
        self.supported_fields = fields | _chat_fields(card, can_hold="constraint" in fields)
        """Fields that a request may set to a value that changes something."""
        self.default_sampling = self._default_sampling()
        """What unset options mean: the model's defaults as far as the engine has them."""

    def dropped_defaults(self) -> tuple[str, ...]:
        """Returns the model's sampling defaults that the engine lacks, as paths. Worth a warning at start-up."""
        return tuple(
            f"sampling.{name}"
            for name in _SAMPLING_OPTIONS
            if getattr(self._card.default_sampling, name) != getattr(self.default_sampling, name)
        )

    def check(self, request: GenerationRequest) -> None:
        """Checks all that needs no tokens.

        Raises:
            InvalidRequest: fields are out of range; it names all of them, or the first 16.
            Forbidden: the request brings its own chat template.
            FeatureUnsupported: an option changes something and the engine, the model or the router lacks it.
        """
        found = chain(
            find_violations(request, self._limits, self._card), self._watermarks.violations(request.watermark)
        )
        violations = list(islice(found, _VIOLATION_LIMIT))
        if violations:
            raise InvalidRequest(violations)
        if isinstance(request.prompt, ChatPrompt):
            self._check_chat(request.prompt)
        for field in _fields_in_use(request):
            if field not in self.supported_fields:
                raise FeatureUnsupported(field, f"not supported for model {self._card.name!r}; leave it unset")

    def resolve(
        self,
        request: GenerationRequest,
        prompt_token_ids: Sequence[int],
        *,
        request_id: str,
        seed: int,
        banned_text: BannedText | None = None,
        hold: Hold | None = None,
        expected: ChatOutput | None = None,
    ) -> ValidRequest:
        """Returns the request with its tokens, its grammar and every default filled in. `check` comes first.

        Raises:
            InvalidRequest: the prompt has no tokens, too many, or one that the model does not know.
        """
        token_ids = self._fitting_prompt(request, tuple(prompt_token_ids))
        stopping, output = request.stopping, request.output
        context = self._limits.context_token_count
        max_new_token_count = stopping.max_new_token_count or self._card.default_max_new_token_count
        if max_new_token_count is None:
            # More than fits, so that running into the context is told from running into a limit of the caller.
            max_new_token_count = context
        completion_count, ignores_end = request.completion_count or 1, bool(stopping.ignore_end_of_sequence)
        return ValidRequest(
            request_id=request_id,
            model=self._card.name,
            prompt_token_ids=token_ids,
            sampling=self._sampling(request, seed, banned_text),
            row_stop=RowStopRules(
                token_limit=min(len(token_ids) + max_new_token_count, context),
                min_new_token_count=stopping.min_new_token_count or 0,
                end_of_sequence_token_ids=() if ignores_end else self._card.end_of_sequence_token_ids,
                stop_token_ids=tuple(dict.fromkeys(stopping.stop_token_ids)),
            ),
            text_stop=TextStopRules(
                stop_sequences=stopping.stop_sequences,
                include_stop_sequence=bool(stopping.include_stop_sequence),
                time_limit_s=stopping.time_limit_s,
            ),
            logprobs=LogprobOptions(
                sampled=bool(output.token_logprobs),
                top_count=output.top_logprob_count or 0,
                prompt=bool(output.prompt_logprobs),
                processed=bool(output.processed_logprobs),
            ),
            max_new_token_count=max_new_token_count,
            completion_count=completion_count,
            best_of=request.best_of or completion_count,
            include_special_tokens=bool(output.include_special_tokens),
            constraint=hold.constraint if hold is not None else None,
            grammar=hold.grammar if hold is not None else "",
            chat_output=ChatOutput() if expected is None or _wants_raw(request.prompt) else expected,
            priority=request.priority or 0,
            cache_salt=private_salt(request),
            tenant=request.tenant,
            deadline_s=request.deadline_s,
            may_draft=request.speculation is not False,
            trace_parent=request.trace_parent,
        )

    def _check_chat(self, chat: ChatPrompt) -> None:
        if chat.template is not None:
            raise Forbidden("chat.template: this server renders conversations with the model's own template only")
        if self._card.chat_template is None:
            raise FeatureUnsupported("chat", "the model has no chat template; send text or token_ids")
        for index, message in enumerate(chat.messages):
            if message.has_image:
                raise FeatureUnsupported(f"chat.messages[{index}].content", "the model takes no images")

    def _fitting_prompt(self, request: GenerationRequest, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the prompt's tokens, of which only the last are kept if the request says so."""
        kept_count = request.truncate_prompt_token_count
        if kept_count is not None:
            token_ids = token_ids[-kept_count:]
        field = prompt_field(request)
        if not token_ids:
            raise InvalidRequest.of(field, "has no tokens")
        limit = min(self._limits.prompt_token_count, self._limits.context_token_count - 1)
        if len(token_ids) > limit:
            raise InvalidRequest.of(
                field,
                f"must have at most {limit} tokens, has {len(token_ids)}; "
                "set truncate_prompt_token_count to keep the last ones",
            )
        if max(token_ids) >= self._card.vocabulary_size or min(token_ids) < 0:
            # A tokenizer can have tokens that were added after the model was trained.
            unknown = next(token_id for token_id in token_ids if not 0 <= token_id < self._card.vocabulary_size)
            raise InvalidRequest([out_of_range(field, f"tokens [0, {self._card.vocabulary_size})", unknown)])
        return token_ids

    def _default_sampling(self) -> SamplingParams:
        defaults = self._card.default_sampling
        neutral = SamplingParams()
        lacking = {
            name: getattr(neutral, name)
            for name in _SAMPLING_OPTIONS
            if f"sampling.{name}" not in self.supported_fields and getattr(defaults, name) != getattr(neutral, name)
        }
        return replace(defaults, **lacking) if lacking else defaults

    def _sampling(self, request: GenerationRequest, seed: int, banned_text: BannedText | None) -> SamplingParams:
        asked, penalty = request.sampling, request.sampling.length_penalty
        given = {name: value for name in _SAMPLING_OPTIONS if (value := getattr(asked, name)) is not None}
        return replace(
            self.default_sampling,
            **given,
            seed=seed,
            logit_bias=tuple(sorted((token_id, bias) for token_id, bias in asked.logit_bias.items() if bias)),
            length_penalty=penalty if penalty is not None and penalty.decay_factor != 1 else None,
            banned_text=banned_text,
            watermark=self._watermarks.resolve(request.watermark) if "watermark" in self.supported_fields else None,
        )


def _fields_in_use(request: GenerationRequest) -> Iterator[str]:
    """Yields the fields that change something. A value that says "off" is nobody's to support."""
    sampling, stopping, output = request.sampling, request.stopping, request.output
    for name, allowed in SAMPLING_RANGES.items():
        if getattr(sampling, name) not in (None, allowed.neutral):
            yield f"sampling.{name}"
    penalty = sampling.length_penalty
    in_use = {
        "sampling.top_k": bool(sampling.top_k),
        "sampling.seed": sampling.seed is not None,
        "sampling.logit_bias": any(sampling.logit_bias.values()),
        "sampling.banned_words": bool(sampling.banned_words),
        "sampling.length_penalty": penalty is not None and penalty.decay_factor != 1,
        "stopping.min_new_token_count": bool(stopping.min_new_token_count),
        "stopping.stop_token_ids": bool(stopping.stop_token_ids),
        "output.token_logprobs": bool(output.token_logprobs),
        "output.top_logprob_count": bool(output.top_logprob_count),
        "output.prompt_logprobs": bool(output.prompt_logprobs),
        "output.processed_logprobs": bool(output.processed_logprobs),
        "constraint": request.constraint is not None,
        "adapter": bool(request.adapter),
        "completion_count": request.completion_count not in (None, 1),
        "best_of": request.best_of is not None and request.best_of > (request.completion_count or 1),
        "watermark": request.watermark is not None and request.watermark.enabled,
        "speculation": bool(request.speculation),
    }
    yield from (field for field, is_used in in_use.items() if is_used)
    if isinstance(request.prompt, ChatPrompt):
        yield from _chat_fields_in_use(request.prompt)


def _chat_fields(card: ModelCard, *, can_hold: bool) -> frozenset[str]:
    """Returns the fields of a conversation that the model understands and another may not."""
    knows_calls = card.tool_format is not None
    found = {
        "chat": card.chat_template is not None,
        "chat.tools": card.takes_tools,
        "chat.parallel_tool_calls": knows_calls,
        "chat.tool_choice": knows_calls and can_hold,
    }
    return frozenset(field for field, is_known in found.items() if is_known)


def _chat_fields_in_use(chat: ChatPrompt) -> Iterator[str]:
    if chat.tools and chat.tool_choice is not ToolChoiceMode.NONE:
        yield "chat.tools"
        if not chat.parallel_tool_calls:
            yield "chat.parallel_tool_calls"
        if called_tools(chat):
            yield "chat.tool_choice"


def _wants_raw(prompt: Prompt | None) -> bool:
    return isinstance(prompt, ChatPrompt) and prompt.raw_output

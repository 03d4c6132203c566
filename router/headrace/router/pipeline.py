"""One request's life, from the client's words to its last event.

    check the fields          at once; nothing was spent on a request that cannot run
    take a place to wait      or be turned away with a hint when to come back
    tokenize                  in a thread: a long prompt must not stop the streams of others
    resolve                   lengths against limits, defaults against options
    submit                    to the replica with the least work before the first token
    relay                     what the step loop puts into the request's stream

Everything but the tokenizer runs on one event loop, so nothing here is locked.
However a request ends (its last event, an error, a cancelled reader or a
closed iterator), what it holds is given back in one place: where its visit ends.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from headrace.contract.chat_output import ChatOutput
from headrace.contract.clock import Clock
from headrace.contract.engine import EngineDescription
from headrace.contract.errors import FeatureUnsupported, InvalidRequest, ModelNotFound, NotReady
from headrace.contract.generation import (
    ChatPrompt,
    GenerationEvent,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
    ValidRequest,
)
from headrace.contract.sampling import BannedText
from headrace.contract.vocabulary import Vocabulary
from headrace.router.active_request import ActiveRequest
from headrace.router.adapter_table import AdapterTable
from headrace.router.admission import Admission, Permit
from headrace.router.banned_words import BannedWords
from headrace.router.chat_output.expectation import expected_output
from headrace.router.chat_template import ChatTemplate
from headrace.router.front_desk import FrontDesk
from headrace.router.model_card import ModelCard
from headrace.router.replicas import RETRY_WHEN_NOT_READY_S, ReplicaSet
from headrace.router.request_grammars import Hold, RequestGrammars, needs_grammar
from headrace.router.request_meter import RequestKind
from headrace.router.tokenizer import Tokenizer
from headrace.router.validation import RequestLimits, Validator
from headrace.router.watermarks import Watermarks

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What the router knows of the model it speaks for."""

    card: ModelCard
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for a model without a chat template."""
    limits: RequestLimits
    watermarks: Watermarks = field(default_factory=Watermarks)

    @property
    def vocabulary(self) -> Vocabulary:
        """What those who follow grammars know of it."""
        return self.tokenizer.vocabulary(self.card.end_of_sequence_token_ids)


class Pipeline:
    """Answers generation requests for one model. Use on one event loop."""

    def __init__(
        self,
        *,
        model: ServedModel,
        admission: Admission,
        replicas: ReplicaSet,
        executor: Executor,
        clock: Clock,
        new_request_id: Callable[[], str],
        new_seed: Callable[[], int],
    ) -> None:
        self.model = model
        self.desk = FrontDesk(admission=admission, replicas=replicas, clock=clock, new_request_id=new_request_id)
        self._executor = executor
        self._banned_words = BannedWords(model.tokenizer, model.card.vocabulary_size)
        self._grammars = RequestGrammars(model.card, model.tokenizer, model.vocabulary)
        self._new_seed = new_seed

    @property
    def admission(self) -> Admission:
        """The waiting room."""
        return self.desk.admission

    @property
    def replicas(self) -> ReplicaSet:
        """Those that run the model."""
        return self.desk.replicas

    @property
    def adapters(self) -> AdapterTable:
        """What requests may name beside the model."""
        return self.replicas.adapters

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Yields the events of one request: started, deltas, finished. Closing it cancels the request.

        Raises:
            RequestError: the request cannot run as asked, or ran out of its time.
            ServerError: it could, but not here or not now.
        """
        async with self.open(request) as active:
            async for event in active.stream.events():
                yield event

    @asynccontextmanager
    async def open(self, request: GenerationRequest) -> AsyncIterator[ActiveRequest]:
        """Runs one request inside the block, whose stream brings the events. Leaving the block cancels it.

        Raises:
            RequestError: the request cannot run as asked, or ran out of its time.
            ServerError: it could, but not here or not now.
        """
        with self.desk.meter.open(RequestKind.GENERATE, request) as metered:
            self.desk.check_open()
            adapter_name = self.adapter_for(request.model, request.adapter)
            validator = self._validator()
            validator.check(request)
            tenant = request.tenant
            with self.adapters.use(adapter_name) as adapter, self.desk.open(request.request_id, tenant) as visit:
                metered.request_id = visit.request_id
                visit.enter(request.best_of or request.completion_count or 1)
                read = await self._read(request)
                valid = validator.resolve(
                    request,
                    read.token_ids,
                    request_id=visit.request_id,
                    seed=self._seed_for(request),
                    banned_text=await self._banned_text(request),
                    hold=await self._hold(request, read.expected),
                    expected=read.expected,
                )
                valid = replace(valid, adapter=adapter)
                metered.prompt_token_count = valid.prompt_token_count
                metered.max_new_token_count = valid.max_new_token_count
                visit.charge(valid.prompt_token_count)
                active = self._activate(valid, visit.permit, metered.received_s)
                metered.submitted_s = active.arrival_s
                try:
                    visit.submit(active)
                    yield active
                finally:
                    metered.summary = active.summary()

    async def probe(self, replica_id: str, deadline_s: float) -> int:
        """Generates one token through a replica, past the queue and the prefix cache, and returns its id.

        Raises:
            ReplicaNotFound: there is none of this id.
            NotReady: it is not connected.
            DeadlineExceeded: no token came before `deadline_s`, a moment on the clock.
        """
        with self.desk.open("") as visit:
            request = GenerationRequest(prompt=TokenPrompt((0,)))
            valid = self._validator().resolve(request, (0,), request_id=visit.request_id, seed=0)
            valid = replace(
                valid,
                sampling=replace(valid.sampling, temperature=0.0),
                row_stop=replace(valid.row_stop, token_limit=2, end_of_sequence_token_ids=()),
                max_new_token_count=1,
                cache_salt=f"probe {visit.request_id}",
                priority=10,
                deadline_s=deadline_s,
            )
            active = self._activate(valid, None, None)
            visit.submit(active, replica_id=replica_id)
            token_ids: list[int] = []
            async for event in active.stream.events():
                token_ids.extend(getattr(event, "token_ids", ()))
            return token_ids[0]

    async def tokenize(self, prompt: Prompt, *, model: str = "", add_special_tokens: bool | None = None) -> "Tokenized":
        """Returns the text of a prompt and its tokens, as `generate` would use them.

        Raises:
            InvalidRequest: the prompt is empty or does not fit the chat template.
            ModelNotFound: `model` is not served.
        """
        self.adapter_for(model, "")
        if isinstance(prompt, TokenPrompt):
            raise InvalidRequest.of("prompt", "token ids need no tokenizing")
        request = GenerationRequest(prompt=prompt, add_special_tokens=add_special_tokens)
        self._validator().check(request)
        return await self._run(self._tokenize_with_spans, request)

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Returns the token ids of a text. A thread makes them: a long one must not stop the streams of others."""
        tokenizer = self.model.tokenizer
        return await self._run(
            lambda given: tuple(tokenizer.encode(given, add_special_tokens=add_special_tokens)), text
        )

    async def detokenize(
        self, token_ids: tuple[int, ...], *, model: str = "", include_special_tokens: bool = False
    ) -> str:
        """Returns the text of token ids.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
            ModelNotFound: `model` is not served.
        """
        self.adapter_for(model, "")
        size = self.model.card.vocabulary_size
        for index, token_id in enumerate(token_ids):
            if token_id >= size:
                raise InvalidRequest.of(
                    f"token_ids[{index}]", f"must be below the vocabulary size {size}, is {token_id}"
                )
        tokenizer = self.model.tokenizer
        return await self._run(
            lambda ids: tokenizer.decode(ids, include_special_tokens=include_special_tokens), token_ids
        )

    def capabilities(self) -> "Capabilities":
        """Returns what a request may ask for now.

        Raises:
            NotReady: no engine has been reached yet, so nobody knows what it can do.
        """
        description = self.replicas.description
        if description is None:
            raise NotReady("no replica is ready", retry_after_s=RETRY_WHEN_NOT_READY_S)
        limits = self.model.limits
        # The last token of a sequence is drawn and never computed, so it needs no KV.
        kv_context = description.block_size * description.block_count + 1
        context = min(limits.context_token_count, description.context_token_count, kv_context)
        limits = replace(
            limits,
            context_token_count=context,
            prompt_token_count=min(limits.prompt_token_count, context - 1),
        )
        validator = Validator(self.model.card, limits, description.supported_fields, self.model.watermarks)
        return Capabilities(description=description, limits=limits, validator=validator)

    def adapter_for(self, model: str, adapter: str) -> str:
        """Returns the adapter that a request means by its fields: one's name may stand where the model's does.

        Raises:
            ModelNotFound: there is neither a model nor an adapter of this name.
            InvalidRequest: the fields name two adapters.
        """
        if not self.adapters.has(model):
            self.check_model(model)
            return adapter
        if adapter not in ("", model):
            raise InvalidRequest.of("adapter", f"must be {model!r} or empty beside the model {model!r}, is {adapter!r}")
        return model

    def check_model(self, name: str) -> None:
        """Checks the name in a request; empty stands for the only model.

        Raises:
            ModelNotFound: no such model is served.
        """
        served = self.model.card.name
        if name and name != served:
            raise ModelNotFound(f"model {name!r} is not served here; {served!r} is", metadata={"model": name})

    def _validator(self) -> Validator:
        return self.capabilities().validator

    def _seed_for(self, request: GenerationRequest) -> int:
        return self._new_seed() if request.sampling.seed is None else request.sampling.seed

    def _activate(self, valid: ValidRequest, permit: Permit | None, received_s: float | None) -> ActiveRequest:
        arrival_s = self.desk.clock.now()
        sequences = [
            self.desk.new_sequence(valid.of_completion(index), arrival_s, received_s) for index in range(valid.best_of)
        ]
        return ActiveRequest(valid, sequences, self.model.tokenizer, permit)

    async def _read(self, request: GenerationRequest) -> "_ReadPrompt":
        if isinstance(request.prompt, TokenPrompt):
            return _ReadPrompt(request.prompt.token_ids)
        begun_s = self.desk.clock.now()
        read = await self._run(self._tokenize, request)
        self.desk.meter.tokenize_s.observe(self.desk.clock.now() - begun_s)
        return read

    async def _banned_text(self, request: GenerationRequest) -> BannedText | None:
        return await self._run(self._compile_banned, request) if request.sampling.banned_words else None

    async def _hold(self, request: GenerationRequest, expected: ChatOutput) -> Hold | None:
        if not needs_grammar(request):
            return None
        begun_s = self.desk.clock.now()
        try:
            return await self._grammars.of(request, expected)
        finally:
            self.desk.meter.grammar_s.observe(self.desk.clock.now() - begun_s)

    def _compile_banned(self, request: GenerationRequest) -> BannedText:
        return self._banned_words.compile(
            request.sampling.banned_words, include_special_tokens=bool(request.output.include_special_tokens)
        )

    async def _run(self, work: Callable[[T], R], argument: T) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, argument)

    def _tokenize(self, request: GenerationRequest) -> "_ReadPrompt":
        text, add_special_tokens = self._text_of(request)
        token_ids = tuple(self.model.tokenizer.encode(text, add_special_tokens=add_special_tokens))
        if not isinstance(request.prompt, ChatPrompt):
            return _ReadPrompt(token_ids)
        return _ReadPrompt(token_ids, expected_output(request.prompt, text, self.model.card))

    def _tokenize_with_spans(self, request: GenerationRequest) -> "Tokenized":
        text, add_special_tokens = self._text_of(request)
        token_ids, spans = self.model.tokenizer.encode_with_spans(text, add_special_tokens=add_special_tokens)
        return Tokenized(text=text, token_ids=tuple(token_ids), spans=tuple(spans))

    def _text_of(self, request: GenerationRequest) -> tuple[str, bool]:
        """Returns the text to tokenize and whether special tokens are added: a chat template writes its own."""
        if isinstance(request.prompt, ChatPrompt):
            if self.model.template is None:
                raise FeatureUnsupported("chat", "the model has no chat template")
            return self.model.template.render(request.prompt), False
        assert isinstance(request.prompt, TextPrompt), "check() refuses a request without a prompt"
        return request.prompt.text, request.add_special_tokens is not False


@dataclass(frozen=True, slots=True)
class _ReadPrompt:
    """A prompt's tokens, and what its completions may hold beside text."""

    token_ids: tuple[int, ...]
    expected: ChatOutput = field(default_factory=ChatOutput)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a request may ask for, the engine's limits included."""

    description: EngineDescription
    limits: RequestLimits
    validator: Validator
    """Knows the supported fields and what unset ones mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """A prompt as text and as tokens."""

    text: str
    token_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Half-open byte ranges in the UTF-8 text, one for each token."""

"""One request for vectors, from the client's words to its answer.

Every input is a sequence of its own, which goes to whatever replica is best for
it. It waits, is computed in chunks, gives way and is replayed as any other; only
nothing is drawn at its end. All inputs are answered, or none.
"""

import asyncio
from itertools import islice

from headrace.contract.embedding import EmbeddingInput, EmbeddingRequest, Embeddings
from headrace.contract.errors import FeatureUnsupported, InvalidRequest
from headrace.contract.generation import TextPrompt, ValidRequest
from headrace.contract.pooling import Pooling, PoolingOptions
from headrace.contract.sampling import LogprobOptions, RowStopRules, SamplingParams, TextStopRules
from headrace.router.active_embedding import ActiveEmbedding
from headrace.router.field_checks import find_embedding_violations, out_of_range
from headrace.router.pipeline import Capabilities, Pipeline
from headrace.router.request_meter import MeteredRequest, RequestKind
from headrace.router.tenant import private_salt

_VIOLATION_LIMIT = 16
"""More would not fit into the headers of a status."""


class EmbeddingPipeline:
    """Answers requests for vectors, beside a pipeline for generation with which it shares everything."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._desk = pipeline.desk

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Returns the vectors of all inputs. Cancelling it cancels the request.

        Raises:
            RequestError: the request cannot run as asked, was aborted or ran out of its time.
            ServerError: it could, but not here or not now.
        """
        with self._desk.meter.open(RequestKind.EMBED, request) as metered:
            return await self._embed(request, metered)

    async def _embed(self, request: EmbeddingRequest, metered: MeteredRequest) -> Embeddings:
        self._desk.check_open()
        adapter_name = self._pipeline.adapter_for(request.model, request.adapter)
        capabilities = self._pipeline.capabilities()
        pooling = self._check(request, capabilities)
        adapters, tenant = self._pipeline.adapters, request.tenant
        with adapters.use(adapter_name) as adapter, self._desk.open(request.request_id, tenant) as visit:
            metered.request_id = visit.request_id
            visit.enter(len(request.inputs))
            prompts = [await self._prompt(request, index, capabilities) for index in range(len(request.inputs))]
            metered.prompt_token_count = sum(map(len, prompts))
            visit.charge(metered.prompt_token_count)
            arrival_s = self._desk.clock.now()
            running: list[ActiveEmbedding] = []
            for prompt in prompts:
                valid = self._valid(request, visit.request_id, prompt, pooling, adapter)
                sequence = self._desk.new_sequence(valid, arrival_s, metered.received_s)
                running.append(ActiveEmbedding(valid, sequence, visit.permit))
            for active in running:
                visit.submit(active)
            vectors = await asyncio.gather(*(active.answer for active in running))
            ended_s = self._desk.clock.now()
            started_s = min(active.started_s for active in running if active.started_s is not None)
        return Embeddings(
            request_id=visit.request_id,
            model=self._pipeline.model.card.name,
            embeddings=tuple(vectors),
            queued_s=started_s - arrival_s,
            computed_s=ended_s - started_s,
        )

    def _check(self, request: EmbeddingRequest, capabilities: Capabilities) -> PoolingOptions:
        """Checks all that needs no tokens, and returns what the engine has to do."""
        model, hidden_size = self._pipeline.model, capabilities.description.hidden_size
        if hidden_size == 0:
            raise FeatureUnsupported("pooling", f"the engine has no embeddings for model {model.card.name!r}")
        found = find_embedding_violations(request, capabilities.limits, model.card, hidden_size=hidden_size)
        violations = list(islice(found, _VIOLATION_LIMIT))
        if violations:
            raise InvalidRequest(violations)
        if request.adapter and "adapter" not in capabilities.validator.supported_fields:
            raise FeatureUnsupported("adapter", f"not supported for model {model.card.name!r}; leave it unset")
        assert isinstance(request.pooling, Pooling), "find_embedding_violations() refuses a request without one"
        return PoolingOptions(
            pooling=request.pooling,
            is_normalized=request.normalize is not False,
            dimension_count=request.dimension_count or 0,
        )

    async def _prompt(self, request: EmbeddingRequest, index: int, capabilities: Capabilities) -> tuple[int, ...]:
        """Returns the tokens of one input.

        Raises:
            InvalidRequest: it has none, too many, or one that the model does not know.
        """
        entry = request.inputs[index]
        field = f"inputs[{index}].{'text' if isinstance(entry, TextPrompt) else 'token_ids'}"
        token_ids = await self._token_ids(entry, add_special_tokens=request.add_special_tokens)
        token_ids = token_ids[: request.truncate_token_count]
        limit, vocabulary_size = capabilities.limits.prompt_token_count, self._pipeline.model.card.vocabulary_size
        if not token_ids:
            raise InvalidRequest.of(field, "has no tokens")
        if len(token_ids) > limit:
            raise InvalidRequest.of(
                field,
                f"must have at most {limit} tokens, has {len(token_ids)}; "
                "set truncate_token_count to keep the first ones",
            )
        if max(token_ids) >= vocabulary_size:
            raise InvalidRequest([out_of_range(field, f"tokens [0, {vocabulary_size})", max(token_ids))])
        return token_ids

    async def _token_ids(self, entry: EmbeddingInput | None, *, add_special_tokens: bool | None) -> tuple[int, ...]:
        assert entry is not None, "find_embedding_violations() refuses an input without a form"
        if isinstance(entry, TextPrompt):
            return await self._pipeline.encode(entry.text, add_special_tokens=add_special_tokens is not False)
        return entry.token_ids

    def _valid(
        self, request: EmbeddingRequest, request_id: str, prompt: tuple[int, ...], pooling: PoolingOptions, adapter: str
    ) -> ValidRequest:
        return ValidRequest(
            request_id=request_id,
            model=self._pipeline.model.card.name,
            prompt_token_ids=prompt,
            sampling=SamplingParams(temperature=0.0),
            # To the scheduler it is a sequence that ends with its first token, which in this case is a vector.
            row_stop=RowStopRules(token_limit=len(prompt) + 1),
            text_stop=TextStopRules(),
            logprobs=LogprobOptions(),
            max_new_token_count=1,
            adapter=adapter,
            priority=request.priority or 0,
            cache_salt=private_salt(request),
            tenant=request.tenant,
            deadline_s=request.deadline_s,
            pooling=pooling,
            trace_parent=request.trace_parent,
        )

"""The keywords that every call takes, typed once for both clients.

The names are those of `headrace.v1`, flattened. None always means "not said": the
server or the model decides. Zero, False and an empty list are values.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import TypedDict

from headrace.client.chat import ToolChoice, ToolLike
from headrace.client.constraint import Constraint, Watermark
from headrace.contract.sampling import LengthPenalty


class CallOptions(TypedDict, total=False):
    """How a call travels. Every method takes these."""

    deadline_s: float | None
    """Seconds from now after which the call ends with `DeadlineExceeded`, retries and time in the server's queue
    included. None waits for ever. Left out, it is the client's `deadline_s`."""
    wait_for_ready: bool
    """Waits for a connection until the deadline, in place of failing at once without one. Meant for batch jobs.
    Left out, it is the client's `wait_for_ready`."""
    metadata: Mapping[str, str]
    """Headers for this call, such as a trace context, after those of the client."""


class GenerateOptions(CallOptions, total=False):
    """What `generate` and `stream` take beside the prompt."""

    model: str | None
    """Name of a served model. May be left out if the server has just one."""
    request_id: str | None
    """Finds the request in the server's logs, and lets `abort` end it. 1 to 128 visible ASCII characters, unique
    among running requests. Left out, the server chooses."""
    adapter: str | None
    """Name of a LoRA adapter; left out, the base model answers."""
    priority: int | None
    """More urgent requests leave the queue first. In [-10, 10]; 0 by default."""
    cache_salt: str | None
    """Requests share cached prompt prefixes only with the same salt. At most 256 bytes."""
    completion_count: int | None
    """Number of completions; 1 by default. They differ in their seeds alone, and the prompt is computed once."""
    best_of: int | None
    """Completions generated, of which the likeliest `completion_count` are returned, the likeliest first. A stream
    brings them when all have ended."""
    truncate_prompt_token_count: int | None
    """Keeps only this many of the prompt's last tokens, in place of refusing a prompt that is too long."""
    add_special_tokens: bool | None
    """Whether the tokenizer adds its special tokens to a text prompt; True by default."""
    constraint: Constraint | None
    """The language that the completion has to belong to."""
    watermark: Watermark | None
    """A statistical watermark; the model's default if left out."""
    speculation: bool | None
    """Whether tokens may be guessed ahead, which changes when they come and never which; wherever the server can if
    left out."""

    temperature: float | None
    """Softmax temperature in [0, 2]; 0 always takes the likeliest token."""
    top_k: int | None
    """Keeps only this many of the likeliest tokens; 0 keeps all."""
    top_p: float | None
    """Keeps the smallest set of likeliest tokens with at least this probability, in (0, 1]; 1 keeps all."""
    min_p: float | None
    """Drops tokens less likely than this share of the likeliest, in [0, 1]."""
    typical_p: float | None
    """Locally typical sampling, in (0, 1]; 1 keeps all."""
    seed: int | None
    """Seed of the random draws, in [0, 2**64). Left out, the server draws one and reports it."""
    repetition_penalty: float | None
    """Makes every token seen so far less likely, in (0, 2]; 1 changes nothing."""
    frequency_penalty: float | None
    """Subtracted from a token's logit once for each time it was generated, in [-2, 2]."""
    presence_penalty: float | None
    """Subtracted from the logit of every token generated at least once, in [-2, 2]."""
    logit_bias: Mapping[int, float] | None
    """Added to the logits of these token ids, in [-100, 100]; at most 1024 entries."""
    banned_words: Sequence[str] | None
    """Text that must not be generated; at most 64 entries."""
    length_penalty: LengthPenalty | None
    """Raises the chance of ending as the completion grows."""

    max_new_token_count: int | None
    """Upper bound on generated tokens. Left out, it is the model's default, or what the context holds."""
    min_new_token_count: int | None
    """Suppresses every ending before this many generated tokens."""
    stop_sequences: Sequence[str] | None
    """Ends before the first of these texts; at most 16. A single text may be given as it is."""
    stop_token_ids: Sequence[int] | None
    """Ends after the first of these token ids; at most 64."""
    ignore_end_of_sequence: bool | None
    """Goes on after the model's end-of-sequence tokens."""
    include_stop_sequence: bool | None
    """Keeps the stop sequence that matched in the text."""
    time_limit_s: float | None
    """Seconds after which the completion ends with what there is. Unlike a deadline this is no error."""

    token_logprobs: bool | None
    """Returns the log-probability of each generated token."""
    top_logprob_count: int | None
    """Returns this many of the likeliest tokens at each position, in [0, 20]; needs `token_logprobs`."""
    prompt_logprobs: bool | None
    """Returns log-probabilities for the prompt's tokens too; the prompt is computed past the prefix cache then."""
    include_special_tokens: bool | None
    """Keeps special tokens in the text."""
    processed_logprobs: bool | None
    """Takes log-probabilities after temperature, penalties and filters, in place of before them."""


class TemplateOptions(TypedDict, total=False):
    """How the model's chat template renders a conversation."""

    tools: Sequence[ToolLike] | None
    """Functions that the model may call: `Tool`s, or mappings as OpenAI's API takes them."""
    tool_choice: ToolChoice | None
    """`"auto"`, `"none"`, `"required"` or a `NamedTool`; `"auto"` by default when there are tools."""
    template_arguments: Mapping[str, object] | None
    """Further variables of the template, such as `{"enable_thinking": False}`. JSON values."""
    continue_final_message: bool | None
    """Continues the last message, which must be the assistant's, in place of answering it."""
    parallel_tool_calls: bool | None
    """Whether one completion may make several tool calls; True by default. With False it ends after the first."""
    raw_output: bool | None
    """Leaves reasoning and tool calls in the text, as the model wrote them; False by default."""
    template: str | None
    """A Jinja template in place of the model's, where the server allows it."""


class ChatOptions(GenerateOptions, TemplateOptions, total=False):
    """What `chat` and `chat_stream` take beside the messages."""


class EmbedOptions(CallOptions, total=False):
    """What `embed` takes beside the inputs and the pooling."""

    model: str | None
    """As in `GenerateOptions`."""
    request_id: str | None
    """As in `GenerateOptions`."""
    normalize: bool | None
    """Whether vectors are scaled to length 1; True by default."""
    dimension_count: int | None
    """Keeps only this many of a vector's first numbers, before it is scaled: for models that were trained so."""
    truncate_token_count: int | None
    """Keeps only this many of each input's first tokens, in place of refusing an input that is too long."""
    add_special_tokens: bool | None
    """Whether the tokenizer adds its special tokens to texts; True by default."""
    adapter: str | None
    """As in `GenerateOptions`."""
    priority: int | None
    """As in `GenerateOptions`."""
    cache_salt: str | None
    """As in `GenerateOptions`."""


class TokenizeOptions(CallOptions, total=False):
    """What `tokenize` takes beside the text."""

    model: str | None
    """As in `GenerateOptions`."""
    add_special_tokens: bool | None
    """Whether the tokenizer adds its special tokens; True by default."""
    include_offsets: bool | None
    """Returns the span of each token in the text."""


class TokenizeChatOptions(CallOptions, TemplateOptions, total=False):
    """What `tokenize_chat` takes beside the messages."""

    model: str | None
    """As in `GenerateOptions`."""
    include_offsets: bool | None
    """Returns the span of each token in the rendered text."""


def check_names(given: Mapping[str, object], allowed: type) -> None:
    """Refuses keywords that `allowed`, one of the classes above, does not have.

    Python does not check the keywords of an unpacked TypedDict at run time.

    Raises:
        TypeError: a keyword is unknown; the message suggests the nearest one.
    """
    known = allowed.__annotations__
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"unknown option {name!r}{hint}")

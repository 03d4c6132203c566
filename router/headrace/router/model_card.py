"""What the router knows of the model it speaks for, read from the model's own files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tokenizers

from headrace.contract.chat_output import ReasoningFormat, ToolFormat
from headrace.contract.errors import FeatureUnsupported, InvalidRequest, StartupError
from headrace.contract.generation import ChatMessage, ChatPrompt
from headrace.contract.sampling import SamplingParams
from headrace.router.chat_output.call_probe import probe_tool_format
from headrace.router.chat_output.formats import detect_reasoning_format
from headrace.router.chat_template import ChatTemplate
from headrace.router.folder_facts import read_folder_facts
from headrace.router.gguf_facts import read_gguf_facts
from headrace.router.gguf_metadata import read_gguf_metadata
from headrace.router.gguf_tokenizer import build_gguf_tokenizer
from headrace.router.model_facts import ModelFacts
from headrace.router.sampling_ranges import SAMPLING_RANGES, is_number
from headrace.router.tokenizer import Tokenizer

_PROBE_WORD = "headrace"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model, without its weights."""

    name: str
    """What requests call it."""
    architecture: str
    """As its configuration names it."""
    context_token_count: int
    """Longest prompt plus completion, in tokens."""
    vocabulary_size: int
    """Number of token ids."""
    end_of_sequence_token_ids: tuple[int, ...]
    """Ids that end a completion: as declared, and the one that ends an assistant's turn."""
    default_sampling: SamplingParams = field(default_factory=SamplingParams)
    """What unset options mean: the model's own defaults, else plain sampling."""
    default_max_new_token_count: int | None = None
    """None is "up to the context"."""
    chat_template: str | None = None
    tool_chat_template: str | None = None
    """The one for conversations with tools, of a model that has one apart."""
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    """By the name that chat templates use, such as `bos_token`."""
    takes_tools: bool = False
    """Whether the chat template has a place for tools."""
    tool_format: ToolFormat | None = None
    """How it writes tool calls; None if nobody knows, and then they stay in the text."""
    reasoning_format: ReasoningFormat | None = None
    """How it marks its reasoning; None if it does not, or nobody knows."""

    def compile_chat_template(self) -> ChatTemplate | None:
        """Returns the chat template, ready to render; None if the model has none.

        Raises:
            StartupError: the template is not valid.
        """
        if self.chat_template is None:
            return None
        return ChatTemplate(self.chat_template, self.special_tokens, tool_template=self.tool_chat_template)

    @property
    def calling_template(self) -> str:
        """The template that writes calls; empty if there is none."""
        return self.tool_chat_template or self.chat_template or ""


def load_model_card(source: Path, name: str) -> ModelCard:
    """Reads a model's card from a GGUF file or a folder.

    Raises:
        StartupError: the files are missing, broken or of an unknown kind; the message names the file.
    """
    facts = read_gguf_facts(source) if _is_gguf(source) else read_folder_facts(source)
    card = ModelCard(
        name=name,
        architecture=facts.architecture,
        context_token_count=facts.context_token_count,
        vocabulary_size=facts.vocabulary_size,
        end_of_sequence_token_ids=facts.end_of_sequence_token_ids,
        default_sampling=_default_sampling(facts),
        default_max_new_token_count=_default_max_new_token_count(facts),
        chat_template=facts.chat_template,
        tool_chat_template=facts.tool_chat_template,
        special_tokens=facts.special_tokens,
    )
    template = card.compile_chat_template()
    if template is None or card.chat_template is None:
        return card
    ends, turn_end = card.end_of_sequence_token_ids, _turn_end(template, facts)
    return replace(
        card,
        end_of_sequence_token_ids=ends if turn_end is None or turn_end in ends else (*ends, turn_end),
        takes_tools=template.takes_tools,
        tool_format=probe_tool_format(card.calling_template, template),
        reasoning_format=detect_reasoning_format(card.chat_template),
    )


def load_tokenizer(source: Path) -> Tokenizer:
    """Loads the tokenizer of a GGUF file or a folder.

    Raises:
        StartupError: the files are missing, broken or of an unknown kind; the message names the file.
    """
    if _is_gguf(source):
        return Tokenizer(build_gguf_tokenizer(read_gguf_metadata(source), source))
    path = source / "tokenizer.json"
    if not path.is_file():
        raise StartupError(f"{source} has no tokenizer.json, which every model needs")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise StartupError(f"cannot read {path}: {error}") from error
    return Tokenizer(backend)


def _is_gguf(source: Path) -> bool:
    if source.is_dir():
        return False
    if not source.is_file():
        raise StartupError(f"there is no model at {source}")
    if source.suffix != ".gguf":
        raise StartupError(f"{source} is neither a folder nor a .gguf file")
    return True


def _default_sampling(facts: ModelFacts) -> SamplingParams:
    """Returns the model's own defaults. Without any it is plain sampling: greedy decoding has to be asked for."""
    top_k = facts.generation.get("top_k")
    # -1 and 0 are both written for "all".
    kept_count = top_k if isinstance(top_k, int) and top_k > 0 else 0
    is_greedy = facts.generation.get("do_sample") is False
    return SamplingParams(
        temperature=0.0 if is_greedy else _default(facts, "temperature"),
        top_k=min(kept_count, facts.vocabulary_size),
        top_p=_default(facts, "top_p"),
        min_p=_default(facts, "min_p"),
        typical_p=_default(facts, "typical_p"),
        repetition_penalty=_default(facts, "repetition_penalty"),
        frequency_penalty=_default(facts, "frequency_penalty"),
        presence_penalty=_default(facts, "presence_penalty"),
    )


def _default(facts: ModelFacts, name: str) -> float:
    allowed = SAMPLING_RANGES[name]
    value = facts.generation.get(name)
    if value is None:
        return float(allowed.neutral)
    if not is_number(value) or value not in allowed:
        raise StartupError(f"{facts.generation_origin}: the default {name} must be in {allowed}, is {value!r}")
    return float(value)


def _default_max_new_token_count(facts: ModelFacts) -> int | None:
    value = facts.generation.get("max_new_tokens")
    return value if isinstance(value, int) and value > 0 else None


def _turn_end(template: ChatTemplate, facts: ModelFacts) -> int | None:
    """Returns the token that the chat template writes after an assistant's words.

    A chat model ends its turns with it, whether or not its files declare it as an end.
    """
    question = ChatMessage(role="user", content="question")
    answer = ChatMessage(role="assistant", content=_PROBE_WORD)
    try:
        text = template.render(ChatPrompt(messages=(question, answer)))
    except (InvalidRequest, FeatureUnsupported):
        # A template for conversations of another shape; what is declared has to do.
        return None
    _, answer_found, rest = text.rpartition(_PROBE_WORD)
    if not answer_found:
        return None
    rest = rest.lstrip()
    found = [token for token in facts.special_token_ids if token and rest.startswith(token)]
    return facts.special_token_ids[max(found, key=len)] if found else None

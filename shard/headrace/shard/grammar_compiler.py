"""Makes matchers of grammars over a model's vocabulary, and keeps those that were used last."""

from collections import OrderedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from headrace.contract.token_table import TokenTable
from headrace.contract.vocabulary import Vocabulary

_KEPT_COUNT = 128
"""Compiled grammars that are kept. One of a usual schema takes a few hundred kilobytes."""

_LIMITS = LLParserLimits(step_lexer_fuel=200_000, step_max_items=50_000, max_lexer_states=100_000, verbose_errors=False)
"""What one token may cost: some 15 ms of a core. A row that needs more fails, by the library's own count."""

_WORDS = ("[a-z]{1,10}", "[a-zA-Z]{1,10}", "[a-zA-Z ]{1,10}", "[a-zA-Z ]{1,30}")
"""Languages whose tokens are found beforehand. Where a grammar allows a whole one, the mask takes its tokens together.

NOTE: the library's own are runs of what a JSON string may hold. A language of words holds none of those
whole, and each mask went through all of the vocabulary, for a third of a millisecond. One of addresses
or names in lower case holds no capitals. Further lengths of that one gained an address hardly anything, and
made the masks of a grammar of words half as long again.
"""


class GrammarCompiler:
    """Compiles each grammar once. Used from one thread."""

    def __init__(self, vocabulary: Vocabulary, vocabulary_size: int) -> None:
        """Takes the number of token ids that the model has logits for.

        Raises:
            ValueError: the vocabulary is empty or has no end of sequence.
        """
        self._tokenizer = _build_tokenizer(vocabulary, vocabulary_size)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, grammar: str) -> LLMatcher:
        """Returns a matcher before the first token, in its error state if the grammar is none."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = LLMatcher(self._tokenizer, grammar, limits=_LIMITS, log_level=0)
            while len(self._compiled) > _KEPT_COUNT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return compiled.deep_copy()


def _build_tokenizer(vocabulary: Vocabulary, vocabulary_size: int) -> LLTokenizer:
    table = TokenTable(vocabulary, vocabulary_size)

    def build(slices: list[str]) -> LLTokenizer:
        return LLTokenizer(table, n_vocab=vocabulary_size, eos_token=table.end_token_ids, slices=slices)  # type: ignore[arg-type]  # read by its attributes

    table.cut = build([]).greedy_tokenize
    return build([*_WORDS, *LLTokenizer.general_slices()])

"""A vocabulary in the shape that llguidance reads its tokens from, shared by those who compile grammars."""

from collections.abc import Callable

from headrace.contract.vocabulary import Vocabulary


class TokenTable:
    """Tokens by id, as many as the model has logits for.

    Its call cuts a text into tokens. A greedy cut will do: it only decides in
    which tokens bytes are spelled that a grammar leaves no choice about.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocabulary_size: int) -> None:
        """Cuts a vocabulary to a size, or fills it up with ids that are not in use.

        Raises:
            ValueError: no token ends a completion.
        """
        table = vocabulary.token_bytes[:vocabulary_size]
        self.tokens = [*table, *(b"" for _ in range(vocabulary_size - len(table)))]
        self.special_token_ids = [token_id for token_id in vocabulary.special_token_ids if token_id < vocabulary_size]
        self.end_token_ids = [
            token_id for token_id in vocabulary.end_of_sequence_token_ids if token_id < vocabulary_size
        ]
        if not self.end_token_ids:
            raise ValueError("a grammar needs a token that ends a completion, and the vocabulary has none")
        self.eos_token_id = self.end_token_ids[0]
        self.cut: Callable[[str], list[int]] = _not_cut

    def __call__(self, text: str | bytes) -> list[int]:
        """Returns the tokens of a text."""
        return self.cut(text.decode(errors="replace") if isinstance(text, bytes) else text)


def _not_cut(_text: str) -> list[int]:
    return []

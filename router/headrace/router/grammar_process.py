"""A process that tries to compile grammars, so that one that takes a whole process with it takes only this one.

Reads a line of JSON for each: first the vocabulary, then constraints. Answers
each constraint with a line: the grammar, or why it is none. Ends with its input.
"""

import json
import resource
import sys
import threading
import time
from typing import IO

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from headrace.contract.generation import Constraint, ConstraintKind
from headrace.contract.token_table import TokenTable
from headrace.contract.vocabulary import Vocabulary
from headrace.router.constraint_notation import to_grammar

_MEMORY_LIMIT_BYTES = 4 << 30
_STACK_SIZE_BYTES = 1 << 20
"""A fraction of what the shard's threads have: what compiles here does not run out of stack there."""

COMPILE_TIME_LIMIT_S = 0.3
"""Of a core, for a grammar and its first mask. The shard compiles it once more, beside a forward pass."""

_LIMITS = LLParserLimits(verbose_errors=False)
_SHOWN_CHARACTERS = 300


def main() -> None:
    """Serves until the input ends, on a thread with a small stack."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_SIZE_BYTES)
    thread = threading.Thread(target=_serve, args=(sys.stdin, sys.stdout))
    thread.start()
    thread.join()


def _serve(requests: IO[str], answers: IO[str]) -> None:
    tokenizer = _build_tokenizer(json.loads(requests.readline()))
    for line in requests:
        kind, text, opening = json.loads(line)
        answers.write(json.dumps(_answer(tokenizer, Constraint(ConstraintKind(kind), text, opening))) + "\n")
        answers.flush()


def _build_tokenizer(line: dict[str, list[int] | list[str]]) -> LLTokenizer:
    vocabulary = Vocabulary(
        token_bytes=tuple(str(token).encode("latin-1") for token in line["tokens"]),
        special_token_ids=tuple(map(int, line["special"])),
        end_of_sequence_token_ids=tuple(map(int, line["ends"])),
    )
    size = len(vocabulary.token_bytes)
    table = TokenTable(vocabulary, size)

    def build(slices: list[str] | None) -> LLTokenizer:
        return LLTokenizer(table, n_vocab=size, eos_token=table.end_token_ids, slices=slices)  # type: ignore[arg-type]  # read by its attributes

    table.cut = build([]).greedy_tokenize
    return build(None)


def _answer(tokenizer: LLTokenizer, constraint: Constraint) -> dict[str, str]:
    """Returns the grammar of a constraint, or the reason why it has none."""
    began_s = time.thread_time()
    try:
        grammar = to_grammar(constraint)
    except (ValueError, RecursionError) as error:
        return {"reason": _shortened(str(error))}
    matcher = LLMatcher(tokenizer, grammar, limits=_LIMITS, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return {"reason": _explained(matcher.get_error())}
    if time.thread_time() - began_s > COMPILE_TIME_LIMIT_S:
        return {"reason": f"takes more than {COMPILE_TIME_LIMIT_S} s to compile; make it smaller", "is_late": "yes"}
    return {"grammar": grammar}


def _explained(error: str) -> str:
    if error.startswith("NoExtension"):
        return "no text belongs to it"
    return _shortened(error.removesuffix("<non-verbose/>"))


def _shortened(text: str) -> str:
    # A status travels in headers: one line, in ASCII.
    text = ascii(" ".join(text.split()))[1:-1]
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


if __name__ == "__main__":
    main()

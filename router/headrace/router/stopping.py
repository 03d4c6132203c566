"""Finds the first stop sequence in a stream of text and withholds what may become one."""

import re


class StopMatcher:
    """Cuts a stream of text at a stop sequence, wherever the stream is divided.

    The sequence that is complete first wins, so no text after it is ever waited
    for; of those that are complete at the same character the longest wins. This is
    the one that a search in the whole text would find by its end.
    """

    __slots__ = ("_held", "_include", "_longest", "_matched", "_sequences", "_starts")

    def __init__(self, stop_sequences: tuple[str, ...], *, include: bool) -> None:
        """Takes sequences, none of them empty. With `include` the matched one stays in the text."""
        # By length, since the first of equals wins below.
        self._sequences = sorted(set(stop_sequences), key=len, reverse=True)
        self._include = include
        self._longest = len(self._sequences[0]) if self._sequences else 0
        first_characters = {sequence[0] for sequence in self._sequences}
        self._starts = re.compile("|".join(re.escape(character) for character in sorted(first_characters)) or r"(?!)")
        self._held = ""
        """Withheld text: nothing, or the beginning of a stop sequence."""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop sequence that ended the text; None while none did."""
        return self._matched

    def push(self, text: str) -> str:
        """Returns the text that can no longer be part of a stop sequence. Text after a match is dropped."""
        if self._matched is not None:
            return ""
        if not self._held and self._starts.search(text) is None:
            return text
        buffer = self._held + text
        end = self._match(buffer)
        if end is None:
            end = self._held_from(buffer)
            self._held = buffer[end:]
        return buffer[:end]

    def flush(self) -> str:
        """Returns what is withheld, when the text ends without a match. Safe to repeat."""
        text, self._held = self._held, ""
        return text

    def _match(self, buffer: str) -> int | None:
        """Looks for a complete sequence and returns where the text ends by it."""
        first_end = len(buffer) + 1
        for sequence in self._sequences:
            start = buffer.find(sequence)
            if start >= 0 and start + len(sequence) < first_end:
                first_end = start + len(sequence)
                self._matched = sequence
        if self._matched is None:
            return None
        self._held = ""
        return first_end if self._include else first_end - len(self._matched)

    def _held_from(self, buffer: str) -> int:
        """Returns the first place from which on the buffer is the beginning of a sequence.

        NOTE: places that fail are released and never looked at again, so the work is linear in the
        text, however much the sequences resemble it.
        """
        for candidate in self._starts.finditer(buffer, max(0, len(buffer) - self._longest + 1)):
            tail = buffer[candidate.start() :]
            if any(sequence.startswith(tail) for sequence in self._sequences):
                return candidate.start()
        return len(buffer)

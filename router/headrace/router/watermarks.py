"""The watermarks that a router can put into completions: its keys, and what unset options mean."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from headrace.contract.errors import FieldViolation
from headrace.contract.generation import WatermarkOptions
from headrace.contract.sampling import Watermark

MOST_DELTA = 100.0
"""As for a logit bias: more makes no difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermarks:
    """The keys of an operator. Without any there are no watermarks."""

    keys: Mapping[str, int] = field(default_factory=lambda: MappingProxyType[str, int]({}))
    """By name; the first is the default."""
    gamma: float = 0.25
    """Share of the vocabulary that is favoured, where a request does not say; in (0, 1)."""
    delta: float = 2.0
    """What is added to its logits, where a request does not say; in (0, 100]."""
    is_default: bool = False
    """Whether requests that do not say are marked."""

    def violations(self, options: WatermarkOptions | None) -> Iterator[FieldViolation]:
        """Yields what is wrong with the options of a request."""
        if options is None:
            return
        if self.keys and options.key and options.key not in self.keys:
            yield FieldViolation("watermark.key", f"must be one of {', '.join(self.keys)}")
        if options.gamma is not None and not 0 < options.gamma < 1:
            yield FieldViolation("watermark.gamma", f"must be in (0, 1), is {options.gamma}")
        if options.delta is not None and not 0 < options.delta <= MOST_DELTA:
            yield FieldViolation("watermark.delta", f"must be in (0, {MOST_DELTA:g}], is {options.delta}")

    def resolve(self, options: WatermarkOptions | None) -> Watermark | None:
        """Returns the mark of a request; None for none. There are keys, and nothing is wrong with the options."""
        if options is None:
            options = WatermarkOptions(enabled=self.is_default)
        if not options.enabled:
            return None
        return Watermark(
            key=self.keys[options.key or next(iter(self.keys))],
            gamma=self.gamma if options.gamma is None else options.gamma,
            delta=self.delta if options.delta is None else options.delta,
        )

"""The Jinja that chat templates are written for, in a sandbox, with a bound on their work.

Templates come with models. Nothing in one may reach Python, and a loop without an
end must not take a thread away for good.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from jinja2 import Environment, Template, TemplateError, meta, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_BUDGET_VARIABLE = "step budget"
"""Not an identifier, so no template can name it."""


class TemplateTooExpensive(TemplateError):
    """A template ran too long or wrote too much."""


@dataclass(frozen=True, slots=True)
class CompiledTemplate:
    """A template and what is known of it before it is rendered."""

    template: Template
    variables: frozenset[str]
    """Names that it takes from outside."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that use what Hugging Face's chat templates may use."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self._now = now
        self.filters["tojson"] = _to_json
        self.filters["charge"] = _charge
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = self._format_now

    def compile_chat_template(self, source: str) -> CompiledTemplate:
        """Compiles a template so that every loop and every macro call takes from the step budget.

        Raises:
            TemplateError: it is not Jinja, or uses a filter that does not exist.
        """
        tree = self.parse(source)
        variables = frozenset(meta.find_undeclared_variables(tree))
        bodies = [loop.body for loop in tree.find_all(nodes.For)] + [macro.body for macro in tree.find_all(nodes.Macro)]
        for body in bodies:
            charge = nodes.Filter(nodes.Const(None), "charge", [], [], None, None)
            body.insert(0, nodes.ExprStmt(charge))
        tree.set_environment(self)
        template = Template.from_code(self, self.compile(tree), self.make_globals(None))
        return CompiledTemplate(template, variables)

    def _format_now(self, pattern: str) -> str:
        return self._now().strftime(pattern)


def render(
    compiled: CompiledTemplate, variables: dict[str, object], *, step_limit: int, output_limit_characters: int
) -> str:
    """Renders a template.

    Raises:
        TemplateTooExpensive: it took more than `step_limit` turns of loops and calls of macros, or wrote
            more than `output_limit_characters`.
        TemplateError: it gave up by itself.
    """
    pieces: list[str] = []
    written_count = 0
    for piece in compiled.template.generate({**variables, _BUDGET_VARIABLE: _Budget(step_limit)}):
        written_count += len(piece)
        if written_count > output_limit_characters:
            raise TemplateTooExpensive(f"it writes more than {output_limit_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


class _Budget:
    """Turns of loops that a rendering has left."""

    __slots__ = ("_limit", "_used_count")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used_count = 0

    def take(self) -> None:
        self._used_count += 1
        if self._used_count > self._limit:
            raise TemplateTooExpensive(f"it takes more than {self._limit} turns of its loops")


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's words for training and changes no text."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@pass_context
def _charge(context: Context, _value: None) -> None:
    budget = context.get(_BUDGET_VARIABLE)
    if isinstance(budget, _Budget):
        budget.take()


def _to_json(
    value: object,
    *,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as models were trained on it; Jinja's own filter escapes HTML."""
    if isinstance(value, Iterator):
        value = list(value)  # as `map` and `select` return it
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)

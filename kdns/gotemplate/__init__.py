"""Templates in the language of Go's ``text/template``, as far as DNS answers need it.

Text with actions: ``{{ .Field }}``, chains and arguments (``{{ .Meta "a/b" }}``, ``{{ index .Match 1 }}``), pipelines,
parentheses, strings, integers, booleans, variables (``{{ $x := … }}``, ``{{ $x = … }}``), ``if``, ``with``, ``range``
and ``else``, ``break`` and ``continue``, comments, and the trim markers ``{{-`` and ``-}}``.  The functions are
``and``, ``or`` and those of `functions.FUNCTIONS`.

What Go has beyond that (``define``, ``template``, ``block``, ``call``, ``html``, ``js``, ``urlquery``, numbers that are
no integers) is a TemplateError when the template is read, like any other mistake that Go finds then.
"""

from __future__ import annotations

from kdns.gotemplate.functions import Fields as Fields
from kdns.gotemplate.functions import Method as Method
from kdns.gotemplate.functions import TemplateError as TemplateError
from kdns.gotemplate.reading import Parser
from kdns.gotemplate.running import State


class Template:
    """One template, read once."""

    def __init__(self, source: str) -> None:
        """Raises TemplateError."""
        parser = Parser(source)
        self._run = parser.parse()
        self._slots = parser.slots
        self.source = source
        self.fields = frozenset(parser.fields)
        """Fields that it may ask of its data; ``.`` when it takes the data as a whole."""

    def render(self, data: Fields) -> str:
        """The template's text for these data; raises TemplateError for what Go finds only then."""
        state = State(data, self._slots)
        self._run(state, data)
        return "".join(state.out)

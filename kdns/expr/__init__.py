"""Expressions in the language of expr-lang, which CoreDNS uses in ``template`` and ``view``.

::

    Expression("incidr(client_ip(), '10.0.0.0/8') && type() in ['A', 'AAAA']", FUNCTIONS).value(functions(query, {}))

Literals (nil, booleans, numbers, strings in any of three quotes, arrays, maps), the operators of the language with
their precedence, ``?:``, ``if {…} else {…}``, ``let x = …; …``, ``|``, members, slices, ranges, comments, the builtins
of `functions.BUILTINS`, and predicates (`functions.PREDICATES`) with ``#``, ``#index`` and ``.field``.

expr-lang checks types when it reads an expression; here a wrong type is an error when the expression is worked out.
Not there: dates, JSON, base64, bytes, ``sortBy``, ``groupBy``, ``reduce`` and other builtins that are not in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from kdns.expr.functions import ExpressionError as ExpressionError
from kdns.expr.functions import Frame
from kdns.expr.reading import Parser


class Expression:
    """One expression, read once."""

    def __init__(self, source: str, functions: Mapping[str, int], variables: Set[str] = frozenset()) -> None:
        """``functions`` (with how many arguments each takes) and ``variables`` are the names that it may use.

        Raises ExpressionError.
        """
        parser = Parser(source, functions, variables)
        self._value = parser.parse()
        self.names = frozenset(parser.used)
        """Those of the names that it does use."""

    def value(self, names: Mapping[str, Any]) -> Any:
        """What it comes to; ``names`` has the functions and variables it uses.  Raises ExpressionError."""
        return self._value(Frame(names))

"""One ``template`` of a Corefile: what it says, which queries it takes, and what it knows about one that it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from kdns.corefile import CorefileError, Directive
from kdns.expr import Expression, ExpressionError, query
from kdns.expr.functions import BUILTINS, PREDICATES, show
from kdns.gotemplate import Fields, Method, Template, TemplateError
from kdns.message import (
    AA,
    AD,
    ANY,
    CD,
    CLASSES,
    NOERROR,
    NOTIMP,
    QR,
    RA,
    RCODES,
    RD,
    TC,
    TYPES,
    Query,
    Z,
)
from kdns.name import ROOT, Name, longest_zone, to_text
from kdns.values import Regexp

ANY_CLASS: Final = 255
_CLASSES: Final = {text: number for number, text in CLASSES.items()}
_TYPES: Final = {text: number for number, text in TYPES.items()}
_RCODES: Final = {text: number for number, text in RCODES.items()} | {"BADSIG": 16, "DSOTYPENI": 11, "NOTIMPL": NOTIMP}
_EVERYTHING: Final = ".*"
_OF_THE_ASKER: Final = frozenset((".", "Message", "Meta", "Question", "Remote"))
"""Fields that differ between two askers of the same question: the spelling of the name is one of their differences."""
_FUNCTIONS: Final = {**query.FUNCTIONS, "group": 1}
_RESERVED: Final = _FUNCTIONS.keys() | BUILTINS.keys() | PREDICATES.keys() | {
    "true", "false", "nil", "in", "or", "and", "not", "matches", "contains", "startsWith", "endsWith", "let", "if",
    "else", "now", "duration", "date", "timezone", "toJSON", "fromJSON", "toBase64", "fromBase64", "sort", "sortBy",
    "groupBy", "reduce", "median", "uniq", "flatten", "toPairs", "fromPairs", "bitushr",
}  # fmt: skip
"""What a variable cannot be called: expr-lang's own names, those that kdns does not have among them."""


class Taken(msgspec.Struct, frozen=True):
    """A query that a rule took."""

    zone: str
    klass: str
    """As metrics and templates name it: the query's, or the rule's where the query asks for any."""
    type: str
    data: Fields
    """What its templates may use."""


class Pattern:
    """A regular expression that names are matched with."""

    def __init__(self, regexp: Regexp) -> None:
        self.text = regexp.pattern
        # google-re2 reads octets some times faster than text, and names are ASCII.
        self._search: Callable[[bytes], Any] = regexp.search  # type: ignore[assignment]
        self._named = tuple((key, index) for key, index in regexp.groupindex.items())

    def groups(self, text: str) -> tuple[list[str], dict[str, str]] | None:
        """What matched as a whole and by group, in order and by number or name; None: nothing did."""
        match = self._search(text.encode())
        if match is None:
            return None
        parts = [part.decode() for part in (match.group(0), *match.groups(b""))]
        by_key = {str(index): part for index, part in enumerate(parts)}
        for key, index in self._named:
            by_key[key] = parts[index]
        return parts, by_key


class Rule(msgspec.Struct, frozen=True):
    """One ``template``."""

    zones: dict[Name, str]
    """With their texts."""
    klass: int
    type: int
    patterns: tuple[Pattern, ...]
    """Empty: every name."""
    variables: tuple[tuple[str, Expression], ...]
    conditions: tuple[Expression, ...]
    answer: tuple[Template, ...]
    additional: tuple[Template, ...]
    authority: tuple[Template, ...]
    rcode: int
    ede: tuple[tuple[int, str], ...]
    fallthrough: tuple[Name, ...]
    choosy: bool
    """Whether it takes a query depends on who asks."""
    personal: bool
    """What it answers depends on who asks."""

    def zone_of(self, asked: Query) -> str | None:
        """The zone that the query is in, if class and type are the rule's too."""
        if (self.klass == ANY_CLASS or asked.klass in (ANY_CLASS, self.klass)) and (
            self.type == ANY or asked.type in (ANY, self.type)
        ):
            zone = longest_zone(asked.name, self.zones)
            return None if zone is None else self.zones[zone]
        return None

    def take(self, asked: Query, zone: str) -> Taken | None:
        """A query in its zone, with what the templates may use; None when regexps or conditions say no.

        Raises ExpressionError.
        """
        text = to_text(asked.name)
        pattern, groups, by_key = _EVERYTHING, [text], {"0": text}
        if self.patterns:
            for one in self.patterns:
                found = one.groups(text)
                if found is not None:
                    pattern, (groups, by_key) = one.text, found
                    break
            else:
                return None
        variables = self._work_out(asked, by_key)
        if variables is None:
            return None
        klass = CLASSES.get(asked.klass if asked.klass != ANY_CLASS else self.klass, "")
        type = TYPES.get(asked.type if asked.type != ANY else self.type, "")
        data = Fields(
            Zone=zone, Name=text, Regex=pattern, Match=groups, Group=by_key, Class=klass, Type=type, Var=variables
        )
        if self.personal:
            data.update(_personal(asked))
        return Taken(zone, klass, type, data)

    def _work_out(self, asked: Query, groups: dict[str, str]) -> dict[str, Any] | None:
        """The variables; None when a condition is not true."""
        variables: dict[str, Any] = {}
        if self.variables or self.conditions:
            names: dict[str, Any] = query.functions(asked)
            names["group"] = lambda key: groups.get(str(key), "") if type(key) in (int, str) else ""
            for key, expression in self.variables:
                names[key] = value = expression.value(names)
                variables[key] = show(value) if type(value) is float else value
            if any(condition.value(names) is not True for condition in self.conditions):
                return None
        return variables


def _personal(asked: Query) -> dict[str, Any]:
    question = Fields(Name=to_text(asked.spelling), Qtype=asked.type, Qclass=asked.klass)
    flags = asked.flags
    message = Fields(
        Id=asked.id,
        Response=bool(flags & QR),
        Opcode=0,
        Authoritative=bool(flags & AA),
        Truncated=bool(flags & TC),
        RecursionDesired=bool(flags & RD),
        RecursionAvailable=bool(flags & RA),
        Zero=bool(flags & Z),
        AuthenticatedData=bool(flags & AD),
        CheckingDisabled=bool(flags & CD),
        Rcode=flags & 15,
        Question=[question],
    )
    meta = Method(1, lambda label: query.metadata(asked, label))
    return {"Message": message, "Question": question, "Remote": asked.peer[0], "Meta": meta}


# --- reading ---------------------------------------------------------------------------------------------------------


class _Draft:
    """A rule while its block is read."""

    def __init__(self) -> None:
        self.patterns: list[Pattern] = []
        self.variables: list[tuple[str, Expression]] = []
        self.conditions: list[Expression] = []
        self.sections: dict[str, list[Template]] = {"answer": [], "additional": [], "authority": []}
        self.rcode = NOERROR
        self.ede: tuple[tuple[int, str], ...] = ()
        self.fallthrough: tuple[Name, ...] = ()

    def match(self, option: Directive) -> None:
        self.patterns += [Pattern(option.regexp(word)) for word in option.between(1)]

    def section(self, option: Directive) -> None:
        for word in option.between(1):
            try:
                self.sections[option.name].append(Template(word))
            except TemplateError as error:
                raise option.error(f"could not compile template: {word}, {error}") from None

    def var(self, option: Directive) -> None:
        key, *words = option.between(2)
        if not (key.isascii() and key.isidentifier()):
            raise option.error(f'invalid variable name "{key}"')
        if key in _RESERVED:
            raise option.error(f'variable name "{key}" is reserved')
        self.variables.append((key, self._expression(option, words, f"{key}, ")))

    def expr(self, option: Directive) -> None:
        self.conditions.append(self._expression(option, option.between(1), ""))

    def _expression(self, option: Directive, words: Sequence[str], what: str) -> Expression:
        try:
            return Expression(" ".join(words), _FUNCTIONS, {key for key, _ in self.variables})
        except ExpressionError as error:
            raise option.error(f"could not compile expression: {what}{error}") from None

    def set_rcode(self, option: Directive) -> None:
        word = option.arg()
        if word not in _RCODES:
            raise option.error(f"unknown rcode {word}")
        self.rcode = _RCODES[word]

    def ederror(self, option: Directive) -> None:
        code, *text = option.between(1, 2)
        self.ede = ((option.integer(code, 0, 65535), text[0] if text else ""),)

    def set_fallthrough(self, option: Directive) -> None:
        self.fallthrough = option.zones(option.args, (ROOT,))

    def upstream(self, option: Directive) -> None:
        """Once named servers for CNAME targets; now without meaning."""


_OPTIONS: Final[dict[str, Callable[[_Draft, Directive], None]]] = {
    "match": _Draft.match,
    "var": _Draft.var,
    "expr": _Draft.expr,
    "answer": _Draft.section,
    "additional": _Draft.section,
    "authority": _Draft.section,
    "rcode": _Draft.set_rcode,
    "ederror": _Draft.ederror,
    "fallthrough": _Draft.set_fallthrough,
    "upstream": _Draft.upstream,
}


def read(use: Directive, default: tuple[Name, ...]) -> Rule:
    """One occurrence of the directive; ``default`` are the zones of one that names none.  Raises CorefileError."""
    klass, type, *zones = use.between(2)
    if klass not in _CLASSES:
        raise use.error(f"invalid query class {klass}")
    if type not in _TYPES:
        raise use.error(f"invalid RR class {type}")
    draft = _Draft()
    for option in use.options():
        read_option = _OPTIONS.get(option.name)
        if read_option is None:
            raise _unknown(option)
        read_option(draft, option)
    templates = [template for section in draft.sections.values() for template in section]
    expressions = [*draft.conditions, *(expression for _, expression in draft.variables)]
    choosy = any(_asks(expression) for expression in expressions)
    return Rule(
        zones={zone: to_text(zone) for zone in use.zones(zones, default)},
        klass=_CLASSES[klass],
        type=_TYPES[type],
        patterns=tuple(draft.patterns),
        variables=tuple(draft.variables),
        conditions=tuple(draft.conditions),
        answer=tuple(draft.sections["answer"]),
        additional=tuple(draft.sections["additional"]),
        authority=tuple(draft.sections["authority"]),
        rcode=draft.rcode,
        ede=draft.ede,
        fallthrough=draft.fallthrough,
        choosy=choosy,
        personal=choosy or any(template.fields & _OF_THE_ASKER for template in templates),
    )


def _asks(expression: Expression) -> bool:
    """Whether the expression depends on who asks."""
    return bool(expression.names & (query.FUNCTIONS.keys() - query.STEADY))


def _unknown(option: Directive) -> CorefileError:
    return option.error(f"Wrong argument count or unexpected line ending after '{option.name}'")

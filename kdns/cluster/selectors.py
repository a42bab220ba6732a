"""Kubernetes label selectors: ``app=web,tier in (front, back),!legacy``.

The API server matches selectors itself; a source that reads files has to do it here.  Grammar and meaning: Kubernetes
documentation, "Labels and Selectors"; the numeric operators ``<`` and ``>`` of node affinity are no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from kdns.values import BadValue

_WORDS = re.compile(r"\s*(?:([A-Za-z0-9_./-]+)|(==|!=|[=!(),]))")
_KEY = re.compile(r"(?:[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_END: Final = ("", ",")


class Requirement(Struct, frozen=True):
    """One part of a selector."""

    key: str
    values: frozenset[str] | None
    """The values that fit; None: any value does."""
    negated: bool = False
    """Turned round; then a missing label fits, too."""

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels fits."""
        found = labels.get(self.key)
        return (found is not None and (self.values is None or found in self.values)) != self.negated


class Selector(Struct, frozen=True):
    """Requirements that must all fit; without any, every object does."""

    requirements: tuple[Requirement, ...] = ()

    def fits(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement.fits(labels) for requirement in self.requirements)


EVERYTHING: Final = Selector()


def parse(text: str) -> Selector:
    """A selector out of its text; the empty text selects everything.  Raises BadValue."""
    words = _words(text)
    requirements: list[Requirement] = []
    at = 0
    while at < len(words):
        requirement, at = _requirement(words, at)
        requirements.append(requirement)
        if at < len(words):
            if words[at] != "," or at + 1 == len(words):
                raise BadValue(f"label selector {text!r}: unexpected {words[at]!r}")
            at += 1
    return Selector(tuple(requirements))


def _words(text: str) -> list[str]:
    words: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _WORDS.match(text, at)
        if match is None:
            raise BadValue(f"label selector {text!r}: unexpected {text[at:].lstrip()[:1]!r}")
        words.append(match[1] or match[2])
        at = match.end()
    return words


def _requirement(words: list[str], at: int) -> tuple[Requirement, int]:
    """The requirement that begins at ``words[at]``, and where it ends."""
    if words[at] == "!":
        return Requirement(_key(words, at + 1), None, True), at + 2
    key = _key(words, at)
    operator = _word(words, at + 1)
    if operator in _END:
        return Requirement(key, None), at + 1
    if operator in ("=", "==", "!="):
        value, end = ("", at + 2) if _word(words, at + 2) in _END else (words[at + 2], at + 3)
        return Requirement(key, frozenset((_value(value),)), operator == "!="), end
    if operator in ("in", "notin"):
        values, end = _values(words, at + 2)
        return Requirement(key, values, operator == "notin"), end
    raise BadValue(f"label selector: unexpected {operator!r} after {key!r}")


def _values(words: list[str], at: int) -> tuple[frozenset[str], int]:
    """The values between parentheses; an empty place between commas is the empty value."""
    if _word(words, at) != "(":
        raise BadValue("label selector: 'in' and 'notin' want values in parentheses")
    values: set[str] = set()
    value = ""
    for place in range(at + 1, len(words)):
        word = words[place]
        if word in (",", ")"):
            values.add(value)
            value = ""
            if word == ")":
                return frozenset(values), place + 1
        elif value:
            raise BadValue(f"label selector: ',' is missing before {word!r}")
        else:
            value = _value(word)
    raise BadValue("label selector: ')' is missing")


def _word(words: list[str], at: int) -> str:
    return words[at] if at < len(words) else ""


def _key(words: list[str], at: int) -> str:
    key = _word(words, at)
    if not _KEY.fullmatch(key):
        raise BadValue(f"label selector: {key!r} is not a label name")
    return key


def _value(text: str) -> str:
    if not _VALUE.fullmatch(text):
        raise BadValue(f"label selector: {text!r} is not a label value")
    return text

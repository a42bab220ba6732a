"""Template text → functions that render it."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from kdns import limits
from kdns.gotemplate import running
from kdns.gotemplate.functions import FUNCTIONS, TemplateError
from kdns.gotemplate.running import Eval, Run
from kdns.gotemplate.words import Word, number, split, unquote

_UNSUPPORTED: Final = frozenset(("define", "template", "block"))


class Parser:
    """Reads one template into functions."""

    def __init__(self, source: str) -> None:
        self._items = list(split(source))[::-1]
        self._words: list[Word] = []
        self._names = ["$"]
        self.slots = 1
        """Places for variables that the template needs."""
        self.fields: set[str] = set()
        """Fields that it may ask of its data; ``.`` when it takes the data as a whole."""
        self._depth = 0
        # How many loops we are in, and how many blocks that make the dot something else than the data.
        self._ranges = self._rebound = 0

    def parse(self) -> Run:
        """The whole template; raises TemplateError."""
        run, end = self._block()
        if end:
            raise TemplateError(f"unexpected {{{{{end}}}}}")
        return run

    def _block(self) -> tuple[Run, str]:
        """Everything up to an ``end`` or ``else`` (its words behind the keyword wait to be read), and that keyword."""
        runs: list[Run] = []
        self._deeper()
        end = ""
        while self._items and not end:
            item = self._items.pop()
            if isinstance(item, str):
                if item:
                    runs.append(partial(running.write, item))
                continue
            self._words = item[::-1]
            keyword = item[0].text if item and item[0].kind == "word" else ""
            if keyword in ("end", "else"):
                self._words.pop()
                end = keyword
            else:
                runs.append(self._statement(keyword))
                self._finished()
        self._depth -= 1
        return (runs[0] if len(runs) == 1 else partial(running.sequence, runs)), end

    def _statement(self, keyword: str) -> Run:
        if keyword in _UNSUPPORTED:
            raise TemplateError(f"{{{{{keyword}}}}} is not supported")
        if keyword in ("if", "with", "range"):
            self._words.pop()
            return self._control(keyword)
        if keyword in ("break", "continue"):
            self._words.pop()
            if not self._ranges:
                raise TemplateError(f"{{{{{keyword}}}}} outside {{{{range}}}}")
            return partial(running.jump, running.Break if keyword == "break" else running.Continue)
        slots, value = self._pipeline(1)
        return partial(running.store, slots[0], value) if slots else partial(running.show, value)

    def _control(self, keyword: str) -> Run:
        outer = len(self._names)
        slots, value = self._pipeline(2 if keyword == "range" else 1)
        self._finished()
        rebinds = keyword != "if"
        self._rebound += rebinds
        self._ranges += keyword == "range"
        body, end = self._block()
        self._rebound -= rebinds
        self._ranges -= keyword == "range"
        otherwise: Run | None = None
        if end == "else":
            otherwise, end = self._otherwise(keyword)
        if end != "end":
            raise TemplateError(f"{{{{{keyword}}}}} without {{{{end}}}}")
        self._finished()
        del self._names[outer:]
        if keyword == "range":
            return partial(running.repeat, slots, value, body, otherwise)
        return partial(running.choose, slots, value, rebinds, body, otherwise)

    def _otherwise(self, keyword: str) -> tuple[Run, str]:
        """What follows ``else``: a further ``if`` or ``with``, or a plain block."""
        if not self._words:
            return self._block()
        again = self._words.pop().text
        if again != keyword or again == "range":
            raise TemplateError(f"unexpected {again!r} in {{{{else}}}}")
        self._deeper()
        run = self._control(again)
        self._depth -= 1
        return run, "end"

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > limits.TEMPLATE_DEPTH:
            raise TemplateError("nested too deeply")

    def _finished(self) -> None:
        if self._words:
            raise TemplateError(f"unexpected {self._words[-1].text!r}")

    # -- pipelines

    def _pipeline(self, most: int) -> tuple[list[int], Eval]:
        """Where the variables are that it sets (at most so many), and its value; up to ``)`` or the end."""
        names, new = self._assignment(most)
        value = self._command(None)
        while self._take("|"):
            value = self._command(value)
        if not new:
            return [self._slot(name) for name in names], value
        self._names += names
        self.slots = max(self.slots, len(self._names))
        return list(range(len(self._names) - len(names), len(self._names))), value

    def _assignment(self, most: int) -> tuple[list[str], bool]:
        """The variables before ``:=`` or ``=``, and whether they are new."""
        ahead = self._words[-1:-5:-1]
        for count in range(1, most + 1):
            named, rest = ahead[: 2 * count - 1], ahead[2 * count - 1 :]
            if not rest or rest[0].text not in (":=", "="):
                continue
            if all(word.kind == "variable" if not at % 2 else word.text == "," for at, word in enumerate(named)):
                del self._words[-2 * count :]
                return [word.text for word in named[::2]], rest[0].text == ":="
        return [], False

    def _slot(self, name: str) -> int:
        for slot in range(len(self._names) - 1, -1, -1):
            if self._names[slot] == name:
                return slot
        raise TemplateError(f"undefined variable {name!r}")

    def _take(self, sign: str) -> bool:
        if self._words and self._words[-1].kind == "sign" and self._words[-1].text == sign:
            self._words.pop()
            return True
        return False

    def _command(self, piped: Eval | None) -> Eval:
        """One command; ``piped`` is the value of the one before, its last argument."""
        if not self._words:
            raise TemplateError("missing value for command")
        word = self._words[-1]
        if word.kind == "word" and word.text not in ("true", "false", "nil"):
            self._words.pop()
            return self._call(word.text, self._arguments(piped))
        literal = word.kind in ("string", "char", "number", "word")
        if word.text == "nil":
            raise TemplateError("nil is not a command")
        if literal and piped is not None:
            raise TemplateError(f"non executable command in pipeline: {word.text}")
        chain = self._chain()
        arguments = self._arguments(piped)
        if not arguments:
            return partial(running.follow, *chain) if chain[1] else chain[0]
        if literal or not chain[1]:
            raise TemplateError(f"can't give argument to non-function {word.text}")
        return partial(running.invoke, *chain, arguments)

    def _arguments(self, piped: Eval | None) -> list[Eval]:
        arguments: list[Eval] = []
        while self._words and not (self._words[-1].kind == "sign" and self._words[-1].text in "|)"):
            if not self._words[-1].spaced:
                raise TemplateError(f"unexpected {self._words[-1].text!r} in operand")
            arguments.append(self._operand())
        return arguments if piped is None else [*arguments, piped]

    def _call(self, name: str, arguments: list[Eval]) -> Eval:
        if name in ("and", "or"):
            if not arguments:
                return partial(running.fail, f"wrong number of args for {name}: want at least 1 got 0")
            return partial(running.decide, name == "or", arguments)
        if name not in FUNCTIONS:
            raise TemplateError(f"function {name!r} not defined")
        function, least, most = FUNCTIONS[name]
        if len(arguments) < least or (most is not None and len(arguments) > most):
            return partial(running.fail, f"wrong number of args for {name}: got {len(arguments)}")
        return partial(running.call, function, arguments)

    def _operand(self) -> Eval:
        word = self._words[-1]
        if word.kind == "word" and word.text not in ("true", "false", "nil"):
            self._words.pop()
            return self._call(word.text, [])
        start, names = self._chain()
        return partial(running.follow, start, names) if names else start

    def _chain(self) -> tuple[Eval, tuple[str, ...]]:
        """An operand and the fields asked of it: ``.A.B``, ``$x.A``, ``(…).A``, or a literal."""
        word = self._words.pop()
        names: list[str] = []
        start: Eval = running.the_dot
        if word.kind == "field":
            names.append(word.text[1:])
            self.fields.add(word.text[1:])
        elif word.kind == "variable":
            start = partial(running.variable, self._slot(word.text))
        elif word.text == "(":
            start = self._parenthesis()
        elif word.text != ".":
            return partial(running.constant, self._literal(word)), ()
        while self._words and self._words[-1].kind == "field" and not self._words[-1].spaced:
            names.append(self._words.pop().text[1:])
        if word.text == "$" and names:
            self.fields.add(names[0])
        elif word.text == "$" or (word.text == "." and not self._rebound):
            self.fields.add(".")
        return start, tuple(names)

    def _parenthesis(self) -> Eval:
        self._deeper()
        _, value = self._pipeline(0)
        if not self._take(")"):
            raise TemplateError("unclosed left paren")
        self._depth -= 1
        return value

    def _literal(self, word: Word) -> Any:
        if word.kind == "string":
            return unquote(word.text)
        if word.kind == "char":
            char = unquote(word.text)
            if len(char) != 1:
                raise TemplateError(f"malformed character constant: {word.text}")
            return ord(char)
        if word.kind == "number":
            return number(word.text)
        if word.text in ("true", "false", "nil"):
            return {"true": True, "false": False, "nil": None}[word.text]
        raise TemplateError(f"unexpected {word.text!r} in operand")

"""Expressions: the tables hold what expr-lang v1.17.8 made of them, but where a comment says otherwise."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import limits
from kdns.expr import Expression, ExpressionError, query
from kdns.expr.functions import BUILTINS, OPERATORS, PREDICATES, show
from kdns.message import Edns, Listener, Query

FUNCTIONS = query.FUNCTIONS | {"group": 1}
VARIABLES = frozenset(("num", "word", "list", "table"))
QUERY = Query(
    b"\1a\7example\0", 1, 1, b"\1A\7eXample\0", 7, 0, None, ("10.0.0.7", 5353), Listener(local=("10.0.0.10", 53)), 40
)
NAMES = query.functions(QUERY.replace(metadata={"k/ns": lambda: "dev"})) | {
    "group": lambda key: "10-0-0-1" if key in (1, "ip") else "",
    "num": 5,
    "word": "abc",
    "list": [1, 2, 3, "x"],
    "table": {"a": 1, "b": {"c": "d"}},
}


def value(source: str) -> object:
    return Expression(source, FUNCTIONS, VARIABLES).value(NAMES)


VALUES = [
    ("{(1 + 1): 2,}", "map[2:2]"),
    ("{a: 1} == {b: 1}", "false"),
    ("split('a,b', ',', 0)", "[]"),
    ("table[1]", "<nil>"),
    ("1 in nil", "false"),
    ("splitAfter('a,b', ',')", "[a, b]"),
    ("true", "true"),
    ("1 == 1.0", "true"),
    ("1 == true", "false"),
    ("type() == 'A'", "true"),
    ("type() in ['A', 'AAAA']", "true"),
    ("type() not in ['A', 'AAAA']", "false"),
    ("not (type() in ['AAAA'])", "true"),
    ("name() matches '^a\\\\.example\\\\.$'", "true"),
    ('name() not matches "^b"', "true"),
    ("name() startsWith 'a.' and name() endsWith \"example.\"", "true"),
    ("name() contains 'xam' && !(class() == 'CH')", "true"),
    ("incidr(client_ip(), '10.0.0.0/8')", "true"),
    ("incidr(client_ip(), '192.168.0.0/16') || type() == 'A'", "true"),
    ("incidr('::ffff:10.0.0.1', '10.0.0.0/8')", "true"),
    ("any(['10.0.0.0/8', '172.16.0.0/12'], incidr(client_ip(), #))", "true"),
    ("all(['10.0.0.0/8', '172.16.0.0/12'], {incidr(client_ip(), #)})", "false"),
    ("none([1,2], # > 2)", "true"),
    ("one([1,2,3], # == 2)", "true"),
    ("count([1,2,3], # > 1)", "2"),
    ("filter(1..5, # % 2 == 0)", "[2 4]"),
    ("map(1..3, # * 2)", "[2 4 6]"),
    ("map(['a','b'], #index)", "[0 1]"),
    ("sum([1,2,3])", "6"),
    ("sum([1,2,3], # * 2)", "12"),
    ("find([1,2,3], # > 1)", "2"),
    ("find([1,2,3], # > 5)", "<nil>"),
    ("findIndex([1,2,3], # > 1)", "1"),
    ("findLast([1,2,3], # > 1)", "3"),
    ("findLastIndex([1,2,3], # > 5)", "<nil>"),
    ("replace(group('ip'), '-', '.')", "10.0.0.1"),
    ("group(1) == group('ip')", "true"),
    ("group(9)", ""),
    ("metadata('k/ns') == 'dev'", "true"),
    ("metadata('x')", ""),
    ("1 + 2 * 3", "7"),
    ("(1 + 2) * 3", "9"),
    ("2 ** 3 ** 2", "512"),
    ("2 ^ 3", "8"),
    ("-2 ** 2", "-4"),
    ("7 / 2", "3.5"),
    ("6 / 2", "3"),
    ("7 % 3", "1"),
    ("-7 % 3", "-1"),
    ("1 / 0", "+Inf"),
    ("10 - 3 - 2", "5"),
    ("'a' + 'b'", "ab"),
    ("1 < 2 < 3", "true"),
    ("1 < 3 < 2", "false"),
    ("1 <= 1 && 2 >= 3", "false"),
    ("'a' < 'b'", "true"),
    ("true ? 1 : 2", "1"),
    ("false ? 1 : true ? 2 : 3", "2"),
    ("nil ?? 'x'", "x"),
    ("table.zz ?? 'd'", "d"),
    ("table.a", "1"),
    ("table.b.c", "d"),
    ("table['b']['c']", "d"),
    ("table?.b?.c", "d"),
    ("table.zz?.c", "<nil>"),
    ("table.zz?.c.d", "<nil>"),
    ("list[0]", "1"),
    ("list[-1]", "x"),
    ("list[1:3]", "[2 3]"),
    ("list[:2]", "[1 2]"),
    ("list[2:]", "[3 x]"),
    ("list[:]", "[1 2 3 x]"),
    ("list[1:-1]", "[2 3]"),
    ("word[1:]", "bc"),
    ("'abc'[1:2]", "b"),
    ("1..3", "[1 2 3]"),
    ("3..1", "[]"),
    ("len('abc') + len([1]) + len({a: 1})", "5"),
    ("{a: 1, 'b': 2}", "map[a:1 b:2]"),
    ("{a: 1}.a", "1"),
    ("[1, 2,]", "[1 2]"),
    ("[]", "[]"),
    ("'x' in {x: 1}", "true"),
    ("'a' in table", "true"),
    ("1 in list", "true"),
    ("num in 1..5", "true"),
    ("upper('a') + lower('B') + trim('  x ') + trim('__x_', '_')", "Abxx"),
    ("trimPrefix('abc', 'a') + trimSuffix('abc', 'c')", "bcab"),
    ("split('a,b,c', ',')", "[a b c]"),
    ("split('a,b,c', ',', 2)", "[a b,c]"),
    ("splitAfter('a,b,c', ',')", "[a, b, c]"),
    ("split('abc', '')", "[a b c]"),
    ("join(['a','b'], '-')", "a-b"),
    ("join(['a','b'])", "ab"),
    ("repeat('ab', 3)", "ababab"),
    ("indexOf('abc', 'c')", "2"),
    ("lastIndexOf('abab', 'b')", "3"),
    ("hasPrefix('abc', 'a') && hasSuffix('abc', 'c')", "true"),
    ("int('42') + int(3.9)", "45"),
    ("float('1.5') + 1", "2.5"),
    ("string(5) + string(true) + string(1.5)", "5true1.5"),
    ("abs(-3) + max(1, 2) + min(3, 4)", "8"),
    ("max([1, 5, 2])", "5"),
    ("ceil(1.2) + floor(1.8) + round(1.5)", "5"),
    ("round(-1.5)", "-2"),
    ("mean([1, 2])", "1.5"),
    ("first([1,2]) + last([1,2])", "3"),
    ("first([])", "<nil>"),
    ("get(table, 'a')", "1"),
    ("get(list, 99)", "<nil>"),
    ("take([1,2,3], 2)", "[1 2]"),
    ("reverse([1,2])", "[2 1]"),
    ("concat([1],[2,3])", "[1 2 3]"),
    ("keys({a: 1})", "[a]"),
    ("values({a: 1})", "[1]"),
    ("bitand(6, 3) + bitor(6, 1) + bitxor(6, 3)", "14"),
    ("bitshl(1, 4) + bitshr(16, 2) + bitnot(0) + bitnand(6, 3)", "23"),
    ("let x = 5; x * 2", "10"),
    ("let x = 5; let y = 2; x * y", "10"),
    ("name() | upper()", "A.EXAMPLE."),
    ("word | upper() | lower() | len()", "3"),
    ("['a','b'] | map(# + '!')", "[a! b!]"),
    ("[1,2,3] | filter(# > 1) | len()", "2"),
    ("if num > 3 { 'big' } else { 'small' }", "big"),
    ("if num > 9 { 'big' } else if num > 4 { 'mid' } else { 'small' }", "mid"),
    ("1 // comment", "1"),
    ("1 /* c */ + 2", "3"),
    ('"a\\tb\\x41é\\101"', "a\tbAéA"),
    ("`raw\\n`", "raw\\n"),
    ("'it\\'s'", "it's"),
    ("0x2A + 0o52 + 0b101 + 1_000", "1089"),
    (".5 + 1.5e3", "1500.5"),
    ("not true", "false"),
    ("!true", "false"),
    ("not not true", "true"),
    ("!do()", "true"),
    ("-num", "-5"),
    ("+num", "5"),
    ("num", "5"),
    ("any([1,2], {let y = #; y == 2})", "true"),
    ("filter([{a: 1}, {a: 2}], .a > 1)", "[map[a:2]]"),
    ("filter([[1,2],[3]], any(#, # == 3))", "[[3]]"),
    ("num == 'x'", "false"),
    ("word == 'abc' ? 'y' : 'n'", "y"),
    ("nil == nil", "true"),
    ("[1,2] == [1,2]", "true"),
    ("{a: 1} == {a: 1}", "true"),
    ("num >= 5 and num <= 5", "true"),
    ("word matches word", "true"),
    ("num not in [1, 2]", "true"),
    ("word not contains 'z'", "true"),
    ("word not startsWith 'a'", "false"),
    ("1; 2", "2"),
    ("1;", "1"),
    ("9223372036854775807", "9223372036854775807"),
    ("count([true,false])", "1"),
    ("[1,2,3][1]", "2"),
    ('"abc" contains "b" == true', "true"),
    ("size() > 10 and bufsize() == 512", "true"),
    ("id() == 7", "true"),
    ("port() == '5353'", "true"),
    ("(num > 3) and (word == 'abc') or false", "true"),
    ("num * 1.5", "7.5"),
    ("any(list, # == 'x')", "true"),
    ("all([], false)", "true"),
    ("'' == \"\"", "true"),
    ("string(nil)", "<nil>"),
    ("string([1,'a'])", "[1 a]"),
    ("len('héé')", "3"),
    ("'b' in ['a', 'b'] and true", "true"),
    ("replace('aaa', 'a', 'b')", "bbb"),
    ("2 - -2", "4"),
    ("2 -2", "0"),
    ("[1,2] | len()", "2"),
    ("map(filter(1..10, # > 5), # + 1)", "[7 8 9 10 11]"),
    ("sum(map(1..4, # * #))", "30"),
    ("1..3 | map(#)", "[1 2 3]"),
    ("'%' + 'x'", "%x"),
    ("list | first()", "1"),
    ("list?.[0]", "1"),
    ('table.b?.["c"]', "d"),
    ('any(["a", "b"], # in ["b"])', "true"),
    ("'a.b.c' | split('.') | last()", "c"),
]

FAILING = [
    "upper(1)",
    "num[1:]",
    "float('x')",
    "max([])",
    "keys(1)",
    "list['a']",
    "not num",
    "incidr('x', '10.0.0.0/8')",
    "incidr('10.0.0.1', 'x')",
    "7 % 0",
    "'a' + 1",
    "'a' < 1",
    "num ?: 3",
    "list[9]",
    "word[0]",
    "int('x')",
    "len(1)",
    "any([1], #)",
    "any(1, true)",
    "1 and 2",
    "true and 1",
    "not num in [5]",
    "10 % 3.5",
    "'a' in 'abc'",
]

UNREADABLE = [
    "let 1 = 2; 3",
    "any(list, #nope)",
    "{'a' 1}",
    "{1 + 1: 2}",
    "'\\q'",
    "0x_",
    "nil ?? 1 && true",
    "let num = 1; num",
    "let x = 1; let x = 2; x",
    "nope",
    "nope()",
    "name",
    "num()",
    "len",
    "len()",
    "type(1)",
    "1 +",
    "(1",
    "[1",
    "{a 1}",
    "any([1])",
    "# == 1",
    "'a' 'b'",
    "true || nope",
    "1 ?? 2 + 3",
    "word matches '['",
    ";",
    "$env",
    "9223372036854775808",
    "1.2.3",
    "1a",
    "0x",
    "'unclosed",
    "@",
    "false and nope2()",
    "true ? nope3 : 1",
    "now() != nil",
    "toJSON({a: 1})",
    "sort([3,1])",
    "reduce([1,2], #acc + #)",
]


@pytest.mark.parametrize(("source", "text"), VALUES)
def test_values(source: str, text: str) -> None:
    assert show(value(source)) == text


# expr-lang finds wrong types when it reads an expression.
@pytest.mark.parametrize("source", FAILING)
def test_failing(source: str) -> None:
    expression = Expression(source, FUNCTIONS, VARIABLES)
    with pytest.raises(ExpressionError):
        expression.value(NAMES)


# Some of these are expr-lang's, but not ours (see ``kdns.expr``).
@pytest.mark.parametrize("source", UNREADABLE)
def test_unreadable(source: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(source, FUNCTIONS, VARIABLES)


def test_types_stay_apart() -> None:
    assert value("true == 1") is False
    assert value("[1, true] == [1, 1]") is False
    assert value("{a: 1} == {a: '1'}") is False
    assert value("1.0 in [1]") is True
    assert type(value("6 / 2")) is float
    assert type(value("7 % 3")) is int


def test_64_bits() -> None:
    assert value("9223372036854775807 + 1") == -(2**63)
    assert value("bitshl(1, 63)") == -(2**63)
    for source in ("bitshl(1, 64)", "bitshr(1, -1)", "int(1e30)", "int('99999999999999999999')"):
        with pytest.raises(ExpressionError):
            value(source)


def test_floats() -> None:
    assert math.isnan(value("0 / 0"))  # type: ignore[arg-type]
    assert math.isnan(value("(0-8) ** 0.5"))  # type: ignore[arg-type]
    assert show(math.nan) == "NaN"
    assert show(value("[ceil(1 / 0), floor(-1 / 0), round(1 / 0)]")) == "[+Inf -Inf +Inf]"
    assert show(-1.5) == "-1.5"
    assert show(-2.5e-9) == "-2.5e-09"


def test_names_in_use() -> None:
    def used(source: str) -> set[str]:
        return set(Expression(source, FUNCTIONS, VARIABLES).names)

    assert used("any(['a'], incidr(client_ip(), #)) || num > len(word)") == {"incidr", "client_ip", "num", "word"}
    assert used("let x = 1; x + len('a')") == set()


def test_query_functions() -> None:
    tcp = QUERY.replace(edns=Edns(100, True), listener=Listener(proto="tcp"), type=65400, klass=3)
    found = query.functions(tcp)
    assert {key: function() for key, function in found.items() if not query.FUNCTIONS[key]} == {
        "bufsize": 65535,
        "class": "CH",
        "client_ip": "10.0.0.7",
        "do": True,
        "id": 7,
        "name": "a.example.",
        "opcode": 0,
        "port": "5353",
        "proto": "tcp",
        "server_ip": "",
        "server_port": "53",
        "size": 40,
        "type": "TYPE65400",
    }
    assert query.functions(QUERY)["bufsize"]() == 512
    assert query.functions(QUERY.replace(edns=Edns(4000, False)))["bufsize"]() == 4000
    assert query.functions(QUERY)["metadata"]("k/ns") == ""
    assert set(found) == set(query.FUNCTIONS) >= query.STEADY
    with pytest.raises(ExpressionError):
        found["incidr"](1, "10.0.0.0/8")
    assert found["metadata"](1) == ""


@pytest.mark.parametrize(
    "source",
    [
        "(" * 10_000 + "1" + ")" * 10_000,
        "[" * 1000 + "]" * 1000,
        "not " * 1000 + "true",
        "-" * 1000 + "1",
        "1" + "+1" * 1000,
        "1" + "**1" * 1000,
        "list" + "[0]" * 1000,
        "true" + " ? true : true" * 1000,
        "true ? " * 1000 + "1" + ": 1" * 1000,
        "any([1], " * 1000 + "true" + ")" * 1000,
        "if true {" * 1000 + "1" + "} else {1}" * 1000,
        "let x = 1;" * 1000,
        "1 " * 20_000,
        "word" + "|upper()" * 1000,
    ],
)
def test_depth_and_length_are_bounded(source: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(source, FUNCTIONS, VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "(" * 45 + "1" + ")" * 45,
        "1" + "+1" * 190,
        "[" + "'10.0.0.0/8'," * 4000 + "]",
        "1" + "**1" * 35,
    ],
)
def test_deepest_and_longest(source: str) -> None:
    value(source)


@pytest.mark.parametrize(
    "source",
    [
        f"1..{limits.EXPRESSION_ROUNDS + 1}",
        "any(1..1000, any(1..1000, false))",
        f"repeat('ab', {limits.EXPRESSION_ROUNDS})",
        "word matches repeat('a', 10000) + 'aa'",
    ],
)
def test_work_is_bounded(source: str) -> None:
    with pytest.raises(ExpressionError):
        value(source)


WORDS = st.sampled_from(
    [
        *(*OPERATORS, *BUILTINS, *PREDICATES, *query.FUNCTIONS, *VARIABLES),
        *(
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ",",
            ".",
            "?.",
            "?",
            ":",
            ";",
            "|",
            "#",
            "#index",
            "not",
            "and",
            "??",
            "let x =",
        ),
        *("x", "true", "nil", "1", "0", "2.5", "'a'", '"b"', "`c`", "[1, 2]", "{a: 1}", "()", "(1)", "if", "else"),
    ]
)


@given(st.lists(WORDS, max_size=10).map(" ".join) | st.text(max_size=20))
def test_any_source(source: str) -> None:
    with contextlib.suppress(ExpressionError):
        show(value(source))

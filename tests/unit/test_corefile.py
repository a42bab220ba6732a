"""Corefiles: what they say, what is wrong with them, and how long that takes to find out."""

from __future__ import annotations

import contextlib
import fnmatch
import random
import time
from pathlib import Path

import pytest

from kdns import corefile, limits, name
from kdns.corefile import Corefile, CorefileError, Directive
from kdns.plugin import ORDER

PARSING = "Error during parsing:"
OPENS = f"{PARSING} Unexpected '{{': a block opens on the line of its directive, once"
GLOB = f"{PARSING} Glob pattern may only contain one wildcard (*), but has others:"
KNOWN = {"whoami", "log", "errors", "cache", "hosts", "kubernetes", "template", "forward", "rewrite", "health"}


def parse(text: str, files: dict[str, str] | None = None, env: dict[str, str] | None = None) -> Corefile:
    files = files or {}

    def read(path: str) -> str:
        if path.endswith("dir"):
            raise IsADirectoryError(path)
        if files[path] == "unreadable":
            raise PermissionError(13, "Permission denied")
        if files[path] == "binary":
            return corefile.decode(b"a\n\xff", path)
        return files[path]

    def glob(pattern: str) -> list[str]:
        return sorted(path for path in files if fnmatch.fnmatchcase(path, pattern))

    return corefile.parse(text, "C", env=env or {}, read=read, glob=glob, known=KNOWN.__contains__)


def lines(directives: tuple[Directive, ...] | None) -> list[tuple[object, ...]]:
    """Directives without their places: (name, arg, …, [block])."""
    return [
        (line.name, *line.args) if line.body is None else (line.name, *line.args, lines(line.body))
        for line in directives or ()
    ]


def body(text: str, **more: dict[str, str]) -> list[tuple[object, ...]]:
    (block,) = parse(f". {{\n{text}\n}}\n", **more).blocks
    return lines(block.directives)


def keys(text: str) -> list[tuple[str, str, int]]:
    (block,) = parse(text).blocks
    return [(key.scheme, name.to_text(key.zone), key.port) for key in block.keys]


def says(text: str, **more: dict[str, str]) -> str:
    with pytest.raises(CorefileError) as caught:
        parse(text, **more)
    return str(caught.value)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('log "a b" c', ("log", "a b", "c")),
        ('log "a\\"b"', ("log", 'a"b')),
        ('log "a\\\\"', ("log", "a\\\\")),
        ('log "a\\n\\d"', ("log", "a\\n\\d")),
        ('log "\\\\\\"x"', ("log", '\\\\"x')),
        ('log ""', ("log", "")),
        ('log a"b c"', ("log", 'a"b', 'c"')),
        ('log "a"b', ("log", "a", "b")),
        ('log "two\nlines" on', ("log", "two\nlines", "on")),
        ('log "a # b" # comment "', ("log", "a # b")),
        ("log a#b", ("log", "a")),
        ("log a#b c", ("log", "a")),
        ("log a\u00a0b\u3000c", ("log", "a", "b", "c")),
        ("log a\rb\r", ("log", "ab")),
        ("# comment\n\n  # more\nlog", ("log",)),
        ("\tlog\va\fb", ("log", "a", "b")),
    ],
)
def test_words(text: str, words: tuple[str, ...]) -> None:
    assert body(text) == [words]


def test_a_byte_order_mark_and_crlf_are_ignored() -> None:
    assert lines(parse("\ufeff. {\r\n  log a\r\n}\r\n").blocks[0].directives) == [("log", "a")]


def test_the_end_of_the_text_closes_a_quote_as_in_coredns() -> None:
    assert lines(parse('.\nlog "a b').blocks[0].directives) == [("log", "a b")]
    assert lines(parse('.\nlog "').blocks[0].directives) == [("log",)]
    assert lines(parse('.\nlog "a\\"').blocks[0].directives) == [("log", 'a"')]


def test_lines_are_counted_over_quotes_and_comments() -> None:
    text = '. {\n # c\n\n log "a\nb\nc" d\n errors\n}\nx {\n}\n'
    first, second = parse(text).blocks
    assert [line.line for line in first.directives] == [4, 7]
    assert (first.line, second.line, second.file) == (1, 9, "C")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{$A}", "one"),
        ("{%A%}", "one"),
        ("x{$A}y{$A}z", "xoneyonez"),
        ("{$NOT}", ""),
        ("{$S}", "a b"),
        ("{$A", "{$A"),
        ("{$}{$A}", "{$}{$A}"),
        ("{$A}{$}{$A}", "one{$}{$A}"),
        ("{%%}{%A%}", "{%%}{%A%}"),
        ("{{$A}}", "{one}"),
        ("{$R}", "{$R}"),
        ("{%P%}", "one"),
        ('"{$S}"', "a b"),
        ("{ $A}", None),
    ],
)
def test_environment_variables(text: str, filled: str | None) -> None:
    env = {"A": "one", "S": "a b", "R": "{$R}", "P": "{$A}"}
    if filled is None:
        assert says(f".\nlog {text}", env=env) == "C:2 - Error during parsing: Unexpected EOF"
    else:
        assert body(f"log {text}", env=env) == [("log", filled)]


def test_environment_variables_are_filled_in_everywhere() -> None:
    env = {"ZONE": "a.org:5300", "D": "log", "FILE": "more", "OPTION": "class"}
    found = parse("{$ZONE} {\n{$D} x {\n{$OPTION} {$D}\n}\nimport {$FILE}\n}", {"more": "errors"}, env)
    assert found.blocks[0].keys[0].port == 5300
    assert lines(found.blocks[0].directives) == [("log", "x", [("class", "log")]), ("errors",)]


# --- server blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (". {\n}", [("dns", ".", 0)]),
        ("example.org", [("dns", "example.org.", 0)]),
        (
            "a.org:5300 B.org, c.org,\nd.org {\n}",
            [("dns", "a.org.", 5300), *(("dns", zone, 0) for zone in ("b.org.", "c.org.", "d.org."))],
        ),
        ("tls://a.org https://b:8443 quic://. {\n}", [("tls", "a.org.", 0), ("https", "b.", 8443), ("quic", ".", 0)]),
        (".:53\n{\n}", [("dns", ".", 53)]),
        ('"" a {\n}', [("dns", "a.", 0)]),
        ('"a" {\n}', [("dns", "a.", 0)]),
        ("10.0.0.0/15:53 {\n}", [("dns", "0.10.in-addr.arpa.", 53), ("dns", "1.10.in-addr.arpa.", 53)]),
        ("foo://a {\n}", [("dns", "foo://a.", 0)]),
        ("(a)", [("dns", "\\(a\\).", 0)]),
        ("a,\n{$NOT} b {\n}", [("dns", "a.", 0), ("dns", "b.", 0)]),
    ],
)
def test_keys(text: str, expected: list[tuple[str, str, int]]) -> None:
    assert keys(text) == expected


def test_blocks_without_braces_and_several_blocks() -> None:
    assert lines(parse(".\nlog\nerrors x").blocks[0].directives) == [("log",), ("errors", "x")]
    found = parse("a {\nlog\n} b {\nerrors\n}\nc\nlog\n}\nd\n")
    assert [block.keys[0].text for block in found.blocks] == ["a", "b", "c", "d"]
    assert parse("").blocks == ()
    assert parse("# nothing\n").blocks == ()
    assert parse("{\nlog\n}\n").blocks == ()


def test_oddities_of_coredns_that_are_kept() -> None:
    # The closing brace of a directive's block passes for the server block's at the end of the file.
    assert lines(parse(". {\ncache {\n}\n").blocks[0].directives) == [("cache", [])]
    # A closing brace too many is the key of another server block.
    assert [block.keys[0].text for block in parse(". {\nlog\n}\n}\n").blocks] == [".", "}"]


def test_directives_and_blocks() -> None:
    assert body("log a {\n class error\n}\ncache 30 {\n}\nerrors") == [
        ("log", "a", [("class", "error")]),
        ("cache", "30", []),
        ("errors",),
    ]
    assert body("health { lameduck 5s }") == [("health", [("lameduck", "5s")])]
    assert body("log {\n a {\n b c\n }\n d\n}") == [("log", [("a", [("b", "c")]), ("d",)])]
    assert body('log "{" x\n}') == [("log", [("x",)])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (". {\nfoo\n}", "C:2 - Error during parsing: Unknown directive 'foo'"),
        (". {\nlog\n\n  foo x\n}", "C:4 - Error during parsing: Unknown directive 'foo'"),
        (". {\n{\n}", "C:2 - Error during parsing: Unknown directive '{'"),
        (". {", "C:1 - Syntax error: Unexpected token '{', expecting '}'"),
        (". {\nlog\n", "C:2 - Syntax error: Unexpected token 'log', expecting '}'"),
        (". {\ncache {\n", "C:2 - Error during parsing: Unexpected EOF"),
        (". {\ncache {\nttl 3", "C:3 - Error during parsing: Unexpected EOF"),
        (". {\nlog }\n", "C:2 - Error during parsing: Unexpected '}' because no matching opening brace"),
        (". {\nlog {\n} }\n", "C:3 - Error during parsing: Unexpected '}' because no matching opening brace"),
        ("a, {\n}", "C:1 - Error during parsing: Expected another address but had '{' - check for extra comma"),
        ("a,", "C:1 - Error during parsing: Unexpected EOF"),
        ("(s)\nlog", "C:2 - Syntax error: Unexpected token 'log', expecting '{'"),
        ("(s) {\nlog", "C:2 - Syntax error: Unexpected token 'log', expecting '}'"),
        ("(s) {\n}\n(s) {\n}", "C:3 - Error during parsing: redeclaration of previously declared snippet s"),
        (". {\nimport\n}", "C:2 - Error during parsing: Wrong argument count or unexpected line ending after 'import'"),
        (". {\nimport a b\n}", "C:2 - Error during parsing: Import takes only one argument (glob pattern or file)"),
        (". {\nimport {$NOT}\n}", "C:2 - Error during parsing: Import requires a non-empty filepath"),
        (". {\nimport nope\n}", "C:2 - Error during parsing: File to import not found: nope"),
        (". {\nimport */*.x\n}", f"C:2 - {GLOB} */*.x"),
        (". {\nimport [a]\n}", f"C:2 - {GLOB} [a]"),
        (". {\nimport [a\n}", "C:2 - Error during parsing: Failed to use import pattern [a: syntax error in pattern"),
        ("(s) {\nimport s\n}", "C:3 - Error during parsing: maximum snippet import depth (10000) exceeded"),
        ("a..b {\nlog\n}", "C:1 - error inspecting server blocks: zone is not a valid domain name: a..b"),
        ("\na,\nb: {\n}", 'C:3 - error inspecting server blocks: expecting data after last colon: "b:"'),
        ("unix:///x {\n}", "C:1 - error inspecting server blocks: cannot serve unix:///x"),
        # A key's error comes behind a parse error further down, as in CoreDNS.
        ("a..b {\n}\n. {\nfoo\n}", "C:4 - Error during parsing: Unknown directive 'foo'"),
        # Where CoreDNS's parser takes nonsense and leaves it to the plugin.
        (". {\nlog\n{\n}\n}", f"C:3 - {OPENS}"),
        (". {\nlog {\n{\n}\n}", f"C:3 - {OPENS}"),
        (". {\nlog {\n} {\n}\n}", f"C:3 - {OPENS}"),
        (". {\nlog {\n} x\n}", "C:3 - Error during parsing: Unexpected 'x' behind a block"),
        (". {\nlog\n\0}", "C:3 - Error during parsing: NUL character"),
    ],
)
def test_errors(text: str, message: str) -> None:
    assert says(text) == message


# --- imports ---------------------------------------------------------------------------------------------------------


def test_snippets() -> None:
    text = "(s) {\nlog x\nerrors\n}\n(opts) { ttl 5\n}\n. {\nimport s\ncache {\nimport opts\nprefetch 1\n}\nimport s\n}"
    assert lines(parse(text).blocks[0].directives) == [
        ("log", "x"), ("errors",), ("cache", [("ttl", "5"), ("prefetch", "1")]), ("log", "x"), ("errors",),
    ]  # fmt: skip


def test_one_line_snippets_imported_twice_stay_two_lines() -> None:
    # CoreDNS joins them: the two words stand on the same line of the same file.
    assert lines(parse("(s) {\nlog\n}\n. {\nimport s\nimport s\n}").blocks[0].directives) == [("log",), ("log",)]


def test_snippets_in_snippets_and_empty_ones() -> None:
    text = "(a) {\nlog\n}\n(b) {\nerrors\nimport a\nimport e\n}\n(e) {\n}\n. {\nimport b\n}"
    assert lines(parse(text).blocks[0].directives) == [("errors",), ("log",)]


def test_files() -> None:
    files = {
        "conf.d/a.override": "log a\n",
        "conf.d/b.override": "errors {\nimport ../part\n}\n",
        "conf.d/../part": "stacktrace",
        "x.server": "b.org {\nlog\n}\n",
        "keys": "k.org l.org",
    }
    text = ". {\nimport conf.d/*.override\ncache\n}\nimport *.server\na.org,\nimport keys\n{\nlog\n}\nimport none/*\n"
    found = parse(text, files)
    assert lines(found.blocks[0].directives) == [("log", "a"), ("errors", [("stacktrace",)]), ("cache",)]
    assert [[key.text for key in block.keys] for block in found.blocks] == [
        ["."],
        ["b.org"],
        ["a.org", "k.org", "l.org"],
    ]
    assert found.warnings == ("No files matching import glob pattern: none/*",)
    assert (found.blocks[1].file, found.blocks[1].line) == ("x.server", 1)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("f", "log\n\nfoo", "f:3 - Error during parsing: Unknown directive 'foo'"),
        ("dir", "", "C:2 - Error during parsing: Could not import dir: is a directory"),
        ("f", "unreadable", "C:2 - Error during parsing: Could not import f: open f: permission denied"),
        ("f", "binary", "f:2 - Error during parsing: not UTF-8"),
    ],
)
def test_what_is_wrong_in_a_file_is_reported_there(file: str, text: str, message: str) -> None:
    assert says(f". {{\nimport {file}\n}}", files={file: text}) == message


def test_snippets_come_before_files_and_in_textual_order() -> None:
    assert body("import s", files={"s": "log"}) == [("log",)]
    text = "(s) {\nerrors\n}\n. {\nimport s\n}"
    assert lines(parse(text, {"s": "log"}).blocks[0].directives) == [("errors",)]
    assert says(". {\nimport s\n}\n(s) {\nlog\n}") == "C:2 - Error during parsing: File to import not found: s"


def test_import_cycles_end() -> None:
    cycle = "(a) {\nimport b\n}\n(b) {\nimport a\n}\n. {\nimport a\n}"
    assert says(cycle).endswith(f"maximum snippet import depth ({limits.SNIPPET_IMPORTS}) exceeded")
    assert "over" in says(". {\nimport f\n}", files={"f": "log\nimport f\n"})
    assert "over" in says("import f", files={"f": "import f\nimport f\n"})


def test_too_many_file_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FILE_IMPORTS", 3)
    text = ". {\n" + "import f\n" * 4 + "}"
    assert says(text, files={"f": "log"}) == "C:5 - Error during parsing: maximum file import depth (3) exceeded"


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_bounds() -> None:
    assert f"over {limits.COREFILE_WORDS} words" in says("a " * limits.COREFILE_WORDS + "a")
    assert f"over {limits.COREFILE_SIZE} characters" in says("#" * (limits.COREFILE_SIZE + 1))
    assert f"over {limits.COREFILE_SIZE} characters" in says(". {\n" + "log {$A}\n" * 5 + "}", env={"A": "x" * 2**20})
    assert "over 120000 words" in says("(a) {\n" + "log\n" * 999 + "}\n. {\n" + "import a\n" * 200 + "}")
    assert f"over {limits.COREFILE_ZONES} zones" in says("10.0.0.0/17 {\n}\n" * 80)
    deep = "log { " + "a { " * limits.COREFILE_NESTING
    assert f"blocks nested over {limits.COREFILE_NESTING} deep" in says(". {\n" + deep)


@pytest.mark.parametrize(
    "text",
    [
        "a ",
        "a\n",
        "{\n",
        "log {\n",
        "\n",
        '"',
        '"a" ',
        "#",
        "#\n",
        "\\",
        '"\\',
        "{$",
        "{$A}",
        "{%A%}",
        "(a) {\n",
        "a,\n",
        "log\n",
        "10.0.0.0/9 ",
        "import x*\n",
        "\r",
        "}",
        "\u3000",
        " ",
        "1.2.3.4 ab\n",
    ],
)
def test_a_megabyte_takes_a_moment(text: str) -> None:
    for start in ("", ". {\n", ". {\nhosts {\n"):
        begun = time.process_time()
        with contextlib.suppress(CorefileError):
            corefile.parse(start + text * (2**20 // len(text)), "C", env={}, read=lambda p: "", glob=lambda p: [])
        # 100 ms on a quiet machine; something worse than linear would take minutes.
        assert time.process_time() - begun < 1.0


def test_mutated_corefiles_give_a_corefile_or_a_corefile_error() -> None:
    random.seed(20261121)
    seed = '(s) {\nlog . {\nclass error\n}\n}\n. a.org:53, b {\nimport s\nhosts {\n 1.2.3.4 x\n}\n log "a b" {$E}\n}\n'
    pieces = [
        "{",
        "}",
        '"',
        "#",
        "\n",
        "import s",
        "import f",
        "(s)",
        ",",
        "\\",
        "{$E}",
        "{%",
        " ",
        "\0",
        "\ufeff",
        "a/b:1",
        "(",
    ]
    files = {"f": "log\n}\nimport s\n", "g": "import g"}
    for _ in range(3000):
        text = seed
        for _ in range(random.randint(1, 6)):
            at = random.randrange(len(text))
            text = text[:at] + random.choice(["", *pieces]) + text[at + random.choice((0, 0, 1, 7)) :]
        try:
            found = parse(text, files, {"E": "e}"})
        except CorefileError as error:
            assert f":{error.line} - " in str(error)
        else:
            assert len(found.digest) == 128


# --- digest and files on disk ----------------------------------------------------------------------------------------


def test_the_digest_stands_for_what_is_said() -> None:
    digest = parse(". {\nlog a\nlog b\n}\n").digest
    assert parse('# c\n.\n{\n  log   "a"\n\n  log b # d\n}').digest == digest
    assert parse(". {\nimport f\nlog b\n}\n", {"f": "log a"}).digest == digest
    others = [
        ". {\nlog a log b\n}\n",
        ". {\nlog a\nlog b {\n}\n}\n",
        ".:53 {\nlog a\nlog b\n}\n",
        ". {\nlog b\nlog a\n}\n",
        "",
    ]
    assert len({digest, *(parse(other).digest for other in others)}) == 6


def test_loading_from_disk(tmp_path: Path) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / ".hidden.override").write_text("errors\n")
    (tmp_path / "custom" / "b.override").write_text("log b\n")
    (tmp_path / "custom" / "a.override").write_text("log a\n")
    file = tmp_path / "Corefile"
    file.write_text(". {\nimport custom/*.override\nimport none/*.override\n}\n")
    found = corefile.load(str(file), {})
    assert lines(found.blocks[0].directives) == [("errors",), ("log", "a"), ("log", "b")]
    assert found.blocks[0].directives[1].file == str(tmp_path / "custom" / "a.override")
    assert found.warnings == ("No files matching import glob pattern: none/*.override",)
    file.write_text("import custom\n")
    with pytest.raises(CorefileError, match="is a directory"):
        corefile.load(str(file), {})
    file.write_bytes(b". {\n \xff\n}")
    with pytest.raises(CorefileError, match="Corefile:2 - Error during parsing: not UTF-8"):
        corefile.load(str(file), {})
    with pytest.raises(FileNotFoundError):
        corefile.load(str(tmp_path / "none"), {})


# --- reading a directive ---------------------------------------------------------------------------------------------


def use(text: str) -> Directive:
    (block,) = parse(f".\n{text}").blocks
    return corefile.only(block.directives)


def complaint(act: object, *args: object) -> str:
    with pytest.raises(CorefileError) as caught:
        act(*args)  # type: ignore[operator]
    return str(caught.value)


def test_counting_arguments() -> None:
    count = "C:2 - Error during parsing: Wrong argument count or unexpected line ending after"
    assert use("log a b").exactly(2) == ("a", "b")
    assert use("log a").arg() == "a"
    assert use("log").optional("x") == "x"
    assert use("log a").optional("x") == "a"
    assert complaint(use("log a b").exactly, 1) == f"{count} 'b'"
    assert complaint(use("log").arg) == f"{count} 'log'"
    assert complaint(use("log a").between, 2) == f"{count} 'a'"
    assert complaint(use("log a b").optional) == f"{count} 'b'"


def test_blocks_of_a_directive() -> None:
    assert use("log").options("a") == ()
    assert [option.name for option in use("log {\na\nb\n}").options("a", "b")] == ["a", "b"]
    assert [option.name for option in use("log {\nx\n}").options()] == ["x"]
    assert complaint(use("log {\na\nx\n}").options, "a") == "C:4 - Error during parsing: unknown property 'x'"
    assert (
        complaint(use("log {\na {\n}\n}").options)
        == "C:3 - Error during parsing: Unexpected token '{', expecting argument"
    )
    use("log").no_block()
    use("log {\n}").no_block()
    assert complaint(use("log {\nx\n}").no_block) == "C:3 - Error during parsing: unknown property 'x'"
    assert complaint(corefile.only, use("log").body or (use("log"), use("errors"))) == (
        "C:2 - Error during parsing: this plugin can only be used once per Server Block"
    )


def test_values_of_a_directive() -> None:
    log = use("log")
    assert log.integer("5", 0, 9) == 5
    assert log.duration("5s") == 5
    assert log.duration("-5s", -10) == -5
    assert log.zones((), (b"\0",)) == (b"\0",)
    assert log.zones(("a",), ()) == (b"\1a\0",)
    assert log.regexp("a+").search("baab") is not None
    assert str(log.cidr("10.0.0.0/8")) == "10.0.0.0/8"
    assert log.listen_address(":80") == ("", 80)
    for act, *args in [
        (log.integer, "x"), (log.integer, "10", 0, 9), 
        (log.duration, "5"), (log.duration, "-5s"), (log.duration, "5s", 0.0, 1.0),
        (log.duration, "0", 1.0), (log.zones, ("a..b",), ()), (log.regexp, "("), (log.cidr, "x"),
        
        (log.listen_address, "x"), 
    ]:  # fmt: skip
        assert complaint(act, *args).startswith("C:2 - Error during parsing: ")


# --- the Corefiles of distributions ----------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parent.parent / "corefiles"


def shipped(folder: str) -> Corefile:
    def here(path: str) -> str:
        return path.replace("/etc/coredns/", f"{SHIPPED / folder}/")

    return corefile.parse(
        (SHIPPED / folder / "Corefile").read_text(),
        str(SHIPPED / folder / "Corefile"),
        env={},
        read=lambda path: corefile.read_file(here(path)),
        glob=lambda pattern: corefile.glob_files(here(pattern)),
        known=ORDER.__contains__,
    )


@pytest.mark.parametrize(
    ("folder", "zones", "directives"),
    [
        ("kubeadm-old", [["."]], 10),
        ("kubeadm", [["."]], 10),
        ("addons-base", [["."]], 10),
        ("coredns-deployment", [["."], ["acme.local."]], 14),
        ("eks", [["."]], 10),
        ("aks", [["."], ["puglife.local."]], 18),
        ("aks-bare", [["."]], 10),
        ("k3s", [["."], ["home.lan."]], 15),
        ("gardener", [["."]], 14),
        ("helm", [["."]], 10),
        ("nodelocal", [["cluster.local."], ["in-addr.arpa."], ["ip6.arpa."], ["."]], 29),
    ],
)
def test_shipped_corefiles(folder: str, zones: list[list[str]], directives: int) -> None:
    found = shipped(folder)
    assert [[name.to_text(key.zone) for key in block.keys] for block in found.blocks] == zones
    assert sum(len(block.directives) for block in found.blocks) == directives
    assert len(found.warnings) == (2 if folder == "aks-bare" else 0)


def test_every_shipped_corefile_is_in_the_table_above() -> None:
    assert len(list(SHIPPED.glob("*/Corefile"))) == 11


def test_what_a_shipped_corefile_says() -> None:
    (block,) = shipped("kubeadm").blocks
    assert lines(block.directives)[3:7] == [
        ("kubernetes", "cluster.local", "in-addr.arpa", "ip6.arpa",
         [("pods", "insecure"), ("fallthrough", "in-addr.arpa", "ip6.arpa"), ("ttl", "30")]),
        ("prometheus", ":9153"),
        ("forward", ".", "/etc/resolv.conf", [("max_concurrent", "1000")]),
        ("cache", "30", [("disable", "success", "cluster.local"), ("disable", "denial", "cluster.local")]),
    ]  # fmt: skip
    (gardener,) = shipped("gardener").blocks
    rewrites = [line for line in lines(gardener.directives) if line[0] == "rewrite"]
    assert rewrites[1] == ("rewrite", "stop", [
        ("name", "regex", r"(.*)\.gardener\.cloud\.svc\.cluster\.local", "{1}.gardener.cloud"),
        ("answer", "name", r"(.*)\.gardener\.cloud", "{1}.gardener.cloud.svc.cluster.local"),
        ("answer", "value", r"(.*)\.gardener\.cloud", "{1}.gardener.cloud.svc.cluster.local"),
    ])  # fmt: skip

"""Go templates: the tables hold what Go 1.26's ``text/template`` made of them, but where a comment says otherwise."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import limits
from kdns.gotemplate import Fields, Method, Template, TemplateError
from kdns.gotemplate.functions import FUNCTIONS


def data() -> Fields:
    return Fields(
        Zone="example.",
        Name="a-1.example.",
        Regex="^(a)-(?P<n>[0-9]+)",
        Match=["a-1", "a", "1"],
        Group={"0": "a-1", "1": "a", "2": "1", "n": "1"},
        Class="IN",
        Type="A",
        Question=Fields(Name="A-1.example.", Qtype=1, Qclass=1),
        Remote="10.0.0.1",
        Var={},
        Meta=Method(1, lambda label: {"k/ns": "dev"}.get(label, "")),
    )


RENDERED = [
    ('{{ printf "%c" -1 }}', "\ufffd"),
    ("plain", "plain"),
    ("{{ .Name }} 60 IN A 1.2.3.4", "a-1.example. 60 IN A 1.2.3.4"),
    ("{{.Zone}}{{.Class}}{{.Type}}{{.Regex}}", "example.INA^(a)-(?P<n>[0-9]+)"),
    ("{{ index .Match 1 }}", "a"),
    ("{{ index .Match }}", "[a-1 a 1]"),
    ('{{ index .Group "n" }}|{{ index .Group "x" }}|', "1||"),
    ("{{ .Group.n }}{{ .Group.x }}", "1<no value>"),
    ("{{ .Question.Name }}{{ .Question.Qtype }}", "A-1.example.1"),
    ('{{ .Meta "k/ns" }}|{{ .Meta "none" }}|', "dev||"),
    ('{{ "k/ns" | .Meta }}', "dev"),
    ("{{ parseInt .Group.n 10 8 }}", "1"),
    ('{{ parseInt "0a" 16 8 }}.{{ parseInt "ff" 16 8 }}', "10.255"),
    ('{{ parseInt "0x1F" 0 64 }}{{ parseInt "0b11" 0 64 }}', "313"),
    ('{{ parseInt "017" 0 64 }}{{ parseInt "0o17" 0 64 }}{{ parseInt "1_0" 0 64 }}', "151510"),
    ('{{ parseInt "18446744073709551615" 10 64 }}', "18446744073709551615"),
    ('{{ parseInt "0" 0 8 }}{{ parseInt "00" 0 8 }}', "00"),
    ('{{ parseInt "0_1" 0 8 }}', "1"),
    ('{{ parseInt "0x_1" 0 8 }}', "1"),
    ('{{ if eq .Type "A" }}yes{{ else }}no{{ end }}', "yes"),
    ('{{ if ne .Type "A" }}yes{{ else if eq .Class "IN" }}in{{ else }}no{{ end }}', "in"),
    ('{{ if and (eq .Type "A") (eq .Class "IN") }}both{{ end }}', "both"),
    ('{{ or "" .Name }}{{ and "" .Name }}{{ and 1 2 }}{{ or 0 "" }}', "a-1.example.2"),
    ('{{ not true }}{{ not "" }}', "falsetrue"),
    ("{{ range .Match }}[{{ . }}]{{ end }}", "[a-1][a][1]"),
    ("{{ range $i, $m := .Match }}{{ $i }}={{ $m }};{{ end }}", "0=a-1;1=a;2=1;"),
    (
        "{{ range $m := .Match }}{{ $m }};{{ end }}{{ range $k, $v := .Group }}{{ $k }}{{ $v }} {{ end }}",
        "a-1;a;1;0a-1 1a 21 n1 ",
    ),
    ('{{ range .Match }}{{ if eq . "a" }}{{ continue }}{{ end }}{{ . }}{{ end }}', "a-11"),
    ('{{ range .Match }}{{ . }}{{ if eq . "a" }}{{ break }}{{ end }},{{ end }}', "a-1,a"),
    ("{{ range 3 }}{{ . }}{{ end }}{{ range $i := 2 }}{{ $i }}{{ end }}", "01201"),
    ("{{ range .Var }}x{{ else }}none{{ end }}", "none"),
    ("{{ with .Group.n }}{{ . }}{{ else }}-{{ end }}{{ with .Group.zz }}{{ . }}{{ else }}-{{ end }}", "1-"),
    ("{{ with $x := .Name }}{{ $x }}{{ . }}{{ $.Zone }}{{ end }}", "a-1.example.a-1.example.example."),
    ('{{ with "" }}a{{ else with .Zone }}{{ . }}{{ end }}', "example."),
    ('{{ $x := .Name }}{{ $x }}{{ $x = "b" }}{{ $x }}', "a-1.example.b"),
    ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
    ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
    ("{{ len .Name }}{{ len .Match }}{{ len .Group }}", "1234"),
    (
        '{{ printf "%s-%d" .Name 3 }}{{ printf "%v %v" .Match .Group }}{{ printf "%q" .Name }}',
        'a-1.example.-3[a-1 a 1] map[0:a-1 1:a 2:1 n:1]"a-1.example."',
    ),
    (
        '{{ printf "%02x%03d|%5s|%-5s|%5d|%-5d|%+d|%x|%X|%o|%b|%c|%U" 10 7 "a" "b" 1 2 3 "hi" "hi" 8 5 97 97 }}',
        "0a007|    a|b    |    1|2    |+3|6869|6869|10|101|a|U+0061",
    ),
    (
        '{{ printf "%d" "x" }}{{ printf "%s" 5 }}{{ printf "%d" }}{{ printf "x" 1 "a" }}{{ printf "%z" 1 }}',
        "%!d(string=x)%!s(int=5)%!d(MISSING)x%!(EXTRA int=1, string=a)%!z(int=1)",
    ),
    ('{{ printf "%t%v" true false }}{{ printf "%%" }}{{ printf "%" }}', "truefalse%%!(NOVERB)"),
    ('{{ printf "%.2s" "abc" }}{{ printf "%#x" 255 }}', "ab0xff"),
    ('{{ printf "%5t|%05d|%-05d|% d|%06d" true -3 4 5 -12 }}', " true|-0003|4    | 5|-00012"),
    ('{{ print 1 2 "a" 3 4 "b" "c" }}{{ print .Match 1 }}{{ println "a" 1 }}', "1 2a3 4bc[a-1 a 1] 1a 1\n"),
    ('{{ lt 1 2 }}{{ le 2 2 }}{{ gt "a" "b" }}{{ ge 3 2 }}', "truetruefalsetrue"),
    ('{{ eq 1 2 3 1 }}{{ eq .Type "AAAA" "A" }}', "truetrue"),
    ('{{ eq .Group.zz "x" }}{{ ne .Group.zz "x" }}', "falsetrue"),
    ('{{ "a" | printf "%s-%s" "b" }}{{ .Name | len | printf "%03d" }}', "b-a012"),
    ('{{ "quo\\"ted\\n\\t\\x41\\u00e9\\101" }}{{ `raw\\n` }}', 'quo"ted\n\tAéAraw\\n'),
    ("{{ 'a' }}{{ '\\n' }}{{ 0x1F }}{{ 017 }}{{ 0b11 }}{{ 1_000 }}{{ -5 }}{{ +5 }}", "9710311531000-55"),
    ('{{ (index .Match 1) }}{{ (len .Match) | printf "%d" }}', "a3"),
    ('{{ (.Question).Name }}{{ (.Meta "k/ns") }}', "A-1.example.dev"),
    ("a {{- .Name -}} b", "aa-1.example.b"),
    ('a {{- " x " -}} b {{ .Name -}}   c', "a x b a-1.example.c"),
    ("a {{/* comment */}} b {{- /* c */ -}} c", "a  bc"),
    ("{{- .Name }}", "a-1.example."),
    ("{{ -3 }}{{-3}}", "-3-3"),
    ("{{ .Match }}{{ .Group }}", "[a-1 a 1]map[0:a-1 1:a 2:1 n:1]"),
    ('{{ . | printf "%s" | len | lt 3 }}', "true"),
    ("{{ true }}{{ false }}", "truefalse"),
    ("{{ $.Name }}{{ $.Group.n }}", "a-1.example.1"),
    ("{{ index .Name 0 }}", "97"),
    ("{{ if .Group.zz }}a{{ else }}b{{ end }}{{ if .Match }}m{{ end }}{{ if 0 }}z{{ end }}{{ if . }}d{{ end }}", "bmd"),
    ('{{if eq .Type "A"}}{{.Name}} 60 IN A 10.0.0.{{index .Match 2}}{{else}}x{{end}}', "a-1.example. 60 IN A 10.0.0.1"),
    ('{{ .Name|len }}{{len .Name|printf "%d"}}', "1212"),
    ('{{ index .Match 1 | printf "%s" }}', "a"),
    ('{{ "{{" }}{{ "}}" }}', "{{}}"),
    ("}} {{ .Name }} }}", "}} a-1.example. }}"),
    ("{{ if and .Group.zz .Group.zz.q }}x{{ else }}y{{ end }}", "y"),
    ("{{ .Group.zz.q }}", "<no value>"),
    ("{{ with .Question }}{{ .Name }}{{ end }}", "A-1.example."),
    ("{{ eq nil nil }}", "true"),
    ('{{ printf "%v" nil }}', "<nil>"),
    ("{{ print }}", ""),
    ('{{ printf "%v|%d|%s" true true true }}', "true|%!d(bool=true)|%!s(bool=true)"),
    (
        '{{ printf "%x" .Match }}{{ printf "%s" .Match }}{{ printf "%d" .Match }}',
        "[612d31 61 31][a-1 a 1][%!d(string=a-1) %!d(string=a) %!d(string=1)]",
    ),
    ("{{ .Var.x }}", "<no value>"),
    ("{{ 1 | print 2 }}", "2 1"),
    ('{{ .Meta "k/ns" | len }}', "3"),
    ('{{ if not (eq .Type "AAAA") }}ok{{ end }}', "ok"),
    ("{{ range $i, $e := .Match }}{{ if $i }},{{ end }}{{ $e }}{{ end }}", "a-1,a,1"),
    ('{{ $x := "a" -}}', ""),
    ("{{ if true }}a\n{{ else }}b{{ end }}\n", "a\n\n"),
    ('{{ $x := "a" -}}\n   {{ $x }}', "a"),
    ("{{ .Name\n}} x", "a-1.example. x"),
    ("{{\n.Name }}", "a-1.example."),
    ("{{ `a\nb` }}", "a\nb"),
    ("a\n{{- .Name -}}\n b", "aa-1.example.b"),
]

FAILING = [
    "{{ parseInt 1 10 8 }}",
    '{{ parseInt "1" 1 8 }}',
    '{{ parseInt "1" 10 65 }}',
    "{{ index .Match 5 }}",
    "{{ .Nope }}",
    "{{ .Name.X }}",
    "{{ .Question.Foo }}",
    "{{ .Meta }}",
    "{{ .Meta 1 }}",
    '{{ .Name "x" }}',
    '{{ parseInt "100" 16 8 }}',
    '{{ parseInt "x" 10 8 }}',
    '{{ parseInt "1_0" 10 64 }}',
    '{{ parseInt "" 10 64 }}',
    '{{ parseInt "-1" 10 64 }}',
    '{{ parseInt "18446744073709551616" 10 64 }}',
    '{{ parseInt "_1" 0 8 }}',
    "{{ range $i, $x := 2 }}{{ $i }}{{ end }}",
    "{{ range .Name }}x{{ end }}",
    "{{ len 3 }}",
    "{{ slice .Name 1 3 }}{{ slice .Name 1 }}{{ slice .Match 1 2 }}{{ slice .Name 3 99 }}",
    "{{ slice .Name 2 1 }}",
    '{{ lt 1 "a" }}',
    '{{ eq 1 "a" }}',
    "{{ eq }}",
    "{{ eq 1 }}",
    "{{ eq true true }}{{ lt true false }}",
    "{{ index .Group 1 }}",
    '{{ index .Match "a" }}',
    "{{ index .Match -1 }}",
    "{{ not }}",
    "{{ not 1 2 }}",
    "{{ and }}",
    "{{ range .Match }}{{ $.Name }}{{ .Name }}{{ end }}",
    "{{ len nil }}",
    "{{ printf 1 }}",
    "{{ printf }}",
    "{{ .Name .Zone }}",
]

UNREADABLE = [
    "{{ if true }}{{ else with 1 }}{{ end }}",
    '{{ "\\q" }}',
    '{{ "\\UFFFFFFFF" }}',
    "{{ '\\n\\n' }}",
    "{{ $y }}",
    "{{ $y = 1 }}",
    "{{ print nil }}{{ nil }}",
    "{{ 99999999999999999999 }}",
    "{{ 'ab' }}",
    '{{ "open }}',
    "{{ .Name",
    "{{ end }}",
    "{{ if true }}",
    "{{ else }}",
    "{{ if }}{{ end }}",
    "{{ foo }}",
    "{{ foo .Name }}",
    "{{ .Name | foo }}",
    "{{ 1 2 }}",
    "{{ 1 | 2 }}",
    '{{ "a" "b" }}',
    "{{ ( .Name }}",
    "{{ .Name ) }}",
    "{{ break }}",
    '{{ define "x" }}{{ end }}',
    '{{ template "x" }}',
    '{{ html "<a>" }}',
    "{{ $a, $b := 1 }}",
    "{{ range $a, $b, $c := .Match }}{{ end }}",
    "{{ if $x := .Name }}{{ $x }}{{ end }}{{ $x }}",
    "{{ .Name.}}",
    "{{ .Name..X }}",
    "{{ $x.Name }}",
    "{{ .1 }}",
    "{{ 1.5 }}",
    '{{ printf "%s"(.Name) }}',
    "{{}}",
    "{{ }}",
    "{{ , }}",
    "{{ break }}{{ continue }}",
    "{{ range .Match }}{{ else }}{{ break }}{{ end }}",
    '{{ (print "a") (print "b") }}',
    "   {{ $x }}",
    "{{ /* a */ }}x",
    '{{/* a */ "b" }}',
    '{{ "a\nb" }}',
]


@pytest.mark.parametrize(("source", "text"), RENDERED)
def test_rendered(source: str, text: str) -> None:
    assert Template(source).render(data()) == text


@pytest.mark.parametrize("source", FAILING)
def test_failing_on_the_data(source: str) -> None:
    template = Template(source)
    with pytest.raises(TemplateError):
        template.render(data())


# Go reads some of these and finds fault only when it runs them, or knows what we do not (see ``kdns.gotemplate``).
@pytest.mark.parametrize("source", UNREADABLE)
def test_unreadable(source: str) -> None:
    with pytest.raises(TemplateError):
        Template(source)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("plain", set()),
        ('{{ "x" }}{{ len "y" }}', set()),
        ("{{ .Name }} {{ .Group.n }}{{ index .Match 1 }}", {"Name", "Group", "Match"}),
        ('{{ if eq .Remote "x" }}{{ .Zone }}{{ end }}', {"Remote", "Zone"}),
        ("{{ $x := .Name }}{{ $x.A }}{{ $.Zone }}", {"Name", "Zone"}),
        ("{{ range .Match }}{{ . }}{{ $.Type }}{{ end }}", {"Match", "Type"}),
        ('{{ (.Meta "a").X }}', {"Meta"}),
        ("{{ . }}", {"."}),
        ("{{ with $ }}{{ .Name }}{{ end }}", {".", "Name"}),
        ("{{ with . }}{{ .Remote }}{{ end }}", {".", "Remote"}),
    ],
)
def test_fields(source: str, fields: set[str]) -> None:
    assert Template(source).fields == fields


@pytest.mark.parametrize(
    "source",
    [
        "{{ if true }}" * 10_000,
        "{{ if true }}a{{ else " + "if true }}a{{ else " * 10_000 + "}}{{ end }}",
        "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
        "{{ range .Match }}" * (limits.TEMPLATE_DEPTH + 1) + "{{ end }}" * (limits.TEMPLATE_DEPTH + 1),
    ],
)
def test_depth_is_bounded(source: str) -> None:
    with pytest.raises(TemplateError, match="deep"):
        Template(source)


def test_rounds_are_bounded() -> None:
    Template(f"{{{{ range {limits.TEMPLATE_ROUNDS} }}}}{{{{ end }}}}").render(data())
    for source in (
        f"{{{{ range {limits.TEMPLATE_ROUNDS + 1} }}}}{{{{ end }}}}",
        "{{ range 9223372036854775807 }}{{ end }}",
        "{{ range 100 }}{{ range 100 }}{{ end }}{{ end }}",
    ):
        with pytest.raises(TemplateError, match="rounds"):
            Template(source).render(data())


def test_width_is_bounded() -> None:
    for form in ("%1001d", "%99999999999d", "%.2000d"):
        with pytest.raises(TemplateError, match="wider"):
            Template(f'{{{{ printf "{form}" 1 }}}}').render(data())
    assert len(Template('{{ printf "%1000d" 1 }}').render(data())) == 1000


def test_values_that_go_has_no_literals_for() -> None:
    fields = Fields(map={"b": "2", "a": "1"}, struct=Fields(x=1, y="z"), flag=False, none=None)
    assert (
        Template("{{ .map }}{{ .struct }}{{ .flag }}{{ print .none }}").render(fields) == "map[a:1 b:2]{1 z}false<nil>"
    )
    assert Template("{{ if .none }}a{{ else }}b{{ end }}{{ if .struct }}c{{ end }}").render(fields) == "bc"
    assert Template("{{ range .none }}a{{ else }}b{{ end }}").render(fields) == "b"
    for source in ("{{ len .struct }}", "{{ index .struct 1 }}", "{{ range .struct }}{{ end }}", "{{ slice .map 1 }}"):
        with pytest.raises(TemplateError):
            Template(source).render(fields)


ACTION = st.lists(
    st.sampled_from(
        [
            *(
                *FUNCTIONS,
                "if",
                "else",
                "end",
                "range",
                "with",
                ".Name",
                ".Match",
                ".Group.n",
                ".Meta",
                "$x",
                ":=",
                "=",
            ),
            *("|", "(", ")", '"k/ns"', "1", "0x1", "true", "nil", ".", "$", ",", "break", "-", "'a'", "`b`"),
        ]
    ),
    max_size=6,
).map(lambda words: "{{ " + " ".join(words) + " }}")


@given(st.lists(ACTION | st.text(max_size=5) | st.just("{{ end }}"), max_size=6).map("".join))
def test_any_source(source: str) -> None:
    with contextlib.suppress(TemplateError):
        Template(source).render(data())

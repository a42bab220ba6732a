"""Label selectors: what fits, and which texts are none."""

import pytest

from kdns.cluster.selectors import EVERYTHING, parse
from kdns.values import BadValue

WEB = {"app": "web", "tier": "front", "example.org/zone": "a", "empty": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "app=web",
        "app == web",
        "app=web,tier=front",
        " app = web , tier = front ",
        "app",
        "!legacy",
        "! legacy",
        "app!=db",
        "legacy!=web",
        "app in (db, web)",
        "app in (db,web),tier notin (back)",
        "legacy notin (a,b)",
        "example.org/zone=a",
        "empty=",
        "empty=,app",
        "empty in ()",
        "empty in (a,)",
        "empty",
    ],
)
def test_fits(text: str) -> None:
    assert parse(text).fits(WEB)


@pytest.mark.parametrize(
    "text",
    ["app=db", "app=", "legacy", "!app", "app!=web", "app in (db)", "app notin (db,web)", "app=web,tier=back"],
)
def test_does_not_fit(text: str) -> None:
    assert not parse(text).fits(WEB)


def test_everything_fits_without_requirements() -> None:
    assert parse("") == EVERYTHING
    assert EVERYTHING.fits({})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("=web", "not a label name"),
        ("app=web,", "unexpected ','"),
        (",app", "not a label name"),
        ("app web", "unexpected 'web'"),
        ("app in web", "parentheses"),
        ("app in (web", "')' is missing"),
        ("app in (a b)", "',' is missing"),
        ("app in", "parentheses"),
        ("!", "not a label name"),
        ("app=-web", "not a label value"),
        ("app=(web)", "not a label value"),
        ("-app", "not a label name"),
        ("app>5", "unexpected '>'"),
        ("app=web)", "unexpected ')'"),
        ("app=" + "x" * 64, "not a label value"),
    ],
)
def test_no_selector(text: str, reason: str) -> None:
    with pytest.raises(BadValue, match="label selector") as caught:
        parse(text)
    assert reason in str(caught.value)

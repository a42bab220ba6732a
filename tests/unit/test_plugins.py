"""How directives find their plugins: kdns's own, CoreDNS's that are missing, and those of real installed packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdns import plugins
from kdns.plugin import ORDER, Plugin
from kdns.plugins import BUILT_IN, PluginError
from tests.support import ROOT

PACKAGES = ROOT / "tests" / "pluginpkg"


# --- kdns's own ------------------------------------------------------------------------------------------------------


def test_the_order_knows_all_of_our_own() -> None:
    assert BUILT_IN.keys() <= set(ORDER)
    assert len(set(ORDER)) == len(ORDER)
    assert plugins.order(()) == ORDER


@pytest.mark.parametrize("directive", BUILT_IN)
def test_ours_are_found(directive: str) -> None:
    plugin = plugins.find(directive)
    assert issubclass(plugin, Plugin)
    assert plugin.name == directive
    assert plugins.find(directive) is plugin
    assert plugin.__doc__


@pytest.mark.parametrize("directive", [directive for directive in ORDER if directive not in BUILT_IN])
def test_missing_ones_are_named(directive: str) -> None:
    with pytest.raises(PluginError, match=f"Directive '{directive}' is CoreDNS's, but kdns does not have it yet"):
        plugins.find(directive)


@pytest.mark.parametrize("directive", ["", "nope", "Cache", "import"])
def test_unknown_ones(directive: str) -> None:
    with pytest.raises(PluginError, match=f"Unknown directive '{directive}'"):
        plugins.find(directive)


def test_a_module_is_imported_only_when_it_is_named() -> None:
    code = "import sys, kdns.plugins; show([m for m in sys.modules if m.startswith('kdns.plugins.')])"
    assert python(code) == []


# --- those of others -------------------------------------------------------------------------------------------------


def python(code: str, *paths: Path) -> Any:
    """Run code in a new process that finds packages in these directories; the result is what it gives to ``show``."""
    run = subprocess.run(
        [sys.executable, "-c", "import json\ndef show(value): print(json.dumps(value))\n" + code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def install(package: str, target: Path) -> Path:
    """Install one of our little packages with pip, as everybody does, but without a network."""
    source = target / "source"
    shutil.copytree(PACKAGES / package, source)
    shutil.copy(PACKAGES / "backend.py", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*command, "--disable-pip-version-check", "--target", target / "lib", source], check=True, timeout=120
    )
    return target / "lib"


def pretend(directory: Path, name: str, points: str, code: str = "") -> Path:
    """What pip leaves of a package with one module, without pip."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kdns.plugins]\n{points}\n")
    (directory / f"{name}.py").write_text("from kdns.plugin import Plugin\n" + code)
    return directory


def refused(call: str, *paths: Path) -> str:
    """What the PluginError says."""
    code = f"from kdns import plugins\ntry:\n {call}\nexcept plugins.PluginError as error:\n show(str(error))"
    said: str = python(code, *paths)
    return said


END_TO_END = r"""
import asyncio
from kdns import plugins
from tests.support import ask, captured_log, serving

async def main():
    order = list(plugins.order({"hello"}))
    found = {"name": plugins.find("hello").name, "all": list(plugins.third_party()), "order": order}
    with captured_log():
        async with serving("example.org {\n whoami\n hello howdy\n}\n") as server:
            for name in ("hello.example.org.", "HELLO.example.org.", "other.example.org."):
                for _ in range(2):
                    reply = await ask(server.ports[0], name, "TXT")
                    found.setdefault(name, []).append([rrset.to_text() for rrset in reply.answer])
    show(found)

asyncio.run(main())
"""


def test_a_real_package_adds_a_directive(tmp_path: Path) -> None:
    found = python(END_TO_END, install("hello", tmp_path))
    assert (found["name"], found["all"]) == ("hello", ["hello"])
    place = found["order"].index("hello")
    assert found["order"][place + 1] == "kubernetes"
    assert [directive for directive in found["order"] if directive != "hello"] == list(ORDER)
    # Its name in the answer is spelled as the question is.
    assert found["hello.example.org."] == [['hello.example.org. 60 IN TXT "howdy"']] * 2
    assert found["HELLO.example.org."] == [['HELLO.example.org. 60 IN TXT "howdy"']] * 2
    assert found["other.example.org."] == [[], []]


def test_a_real_package_for_another_contract_is_refused(tmp_path: Path) -> None:
    library = install("old", tmp_path)
    for call in ("plugins.find('old')", "plugins.order({'old'})"):
        assert refused(call, library) == "kdns-old: plugin 'old' is for API 0, kdns has 1"


def test_a_broken_package_that_no_corefile_names_harms_nobody(tmp_path: Path) -> None:
    library = pretend(tmp_path, "odd", "x = odd:P", "raise RuntimeError('no')")
    assert python("from kdns import plugins; show(plugins.order({'cache'}))", library) == list(ORDER)


GOOD = "class P(Plugin):\n    name = 'x'\n    after = 'cache'\n"


@pytest.mark.parametrize(
    ("points", "code", "call", "says"),
    [
        (
            "x = odd:P",
            "raise RuntimeError('no')",
            "find('x')",
            "odd: plugin 'x' cannot be imported: RuntimeError('no')",
        ),
        ("x = odd:Q", GOOD, "find('x')", "odd: plugin 'x' cannot be imported: AttributeError("),
        ("x = odd:P", "P = 5", "find('x')", "odd: plugin 'x' is not a kdns.plugin.Plugin"),
        ("x = odd:P", "class P: pass", "find('x')", "odd: plugin 'x' is not a kdns.plugin.Plugin"),
        ("x = odd:P", "class P(Plugin): pass", "order({'x'})", "odd: plugin 'x' must name one of before and after"),
        (
            "x = odd:P",
            "class P(Plugin):\n    before = after = 'cache'",
            "order({'x'})",
            "odd: plugin 'x' must name one of before and after",
        ),
        (
            "x = odd:P",
            "class P(Plugin):\n    before = 'nothing'",
            "order({'x'})",
            "odd: plugin 'x' wants a place beside unknown 'nothing'",
        ),
        ("cache = odd:P", GOOD, "third_party()", "odd: plugin 'cache' exists already"),
        ("route53 = odd:P", GOOD, "find('nope')", "odd: plugin 'route53' exists already"),
    ],
)
def test_odd_packages_are_refused_by_name(tmp_path: Path, points: str, code: str, call: str, says: str) -> None:
    assert refused(f"plugins.{call}", pretend(tmp_path, "odd", points, code)).startswith(says)


def test_two_packages_with_the_same_directive(tmp_path: Path) -> None:
    one = pretend(tmp_path / "one", "one", "x = one:P", GOOD)
    two = pretend(tmp_path / "two", "two", "x = two:P", GOOD)
    assert refused("plugins.third_party()", one, two) == "two: plugin 'x' exists already"


def test_third_parties_may_stand_beside_each_other(tmp_path: Path) -> None:
    code = "class P(Plugin):\n    after = 'cache'\nclass Q(Plugin):\n    before = 'p'\n"
    library = pretend(tmp_path, "both", "p = both:P\nq = both:Q", code)
    order = python("from kdns import plugins; show(plugins.order({'p', 'q'}))", library)
    at = order.index("cache")
    assert order[at : at + 4] == ["cache", "q", "p", "header"]

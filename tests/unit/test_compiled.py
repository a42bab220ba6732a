"""The choice between a module and its compiled twin."""

from __future__ import annotations

import sys
import types

import pytest

from kdns.compiled import VARIABLE, NotCompiled, twin


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A compiled module that can be imported."""
    module = types.ModuleType("kdns._invented")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("wanted", ["", "auto", "must"])
def test_the_compiled_twin_is_taken_where_it_is(
    wanted: str, built: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, wanted)
    assert twin(built.__name__) is built


def test_never_leaves_it_alone(built: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "never")
    assert twin(built.__name__) is None


def test_without_it_the_python_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert twin("kdns._not_there") is None


def test_must_fails_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "must")
    with pytest.raises(NotCompiled, match=r"kdns\._not_there"):
        twin("kdns._not_there")


def test_other_words_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(NotCompiled, match="perhaps"):
        twin("kdns._not_there")

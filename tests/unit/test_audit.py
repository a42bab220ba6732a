"""What is written down of each object, and what a list of metadata says against it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import limits
from kdns.cluster.audit import Doubt, Item, Ledger, Metadata, Round, decode_metadata, decode_token, named, place_of
from kdns.cluster.audit import digest_of as digest
from kdns.cluster.objects import ObjectError

NAMESPACE = b"default"


def ledger(**versions: str) -> Ledger:
    made = Ledger()
    made.begin()
    for name, version in versions.items():
        made.note(NAMESPACE, name.encode(), version)
    made.sweep()
    return made


def page(token: str = "", **versions: str) -> Metadata:
    return Metadata([Item(NAMESPACE, name.encode(), version) for name, version in versions.items()], "9", token, True)


def doubt(name: bytes, listed: str, known: str) -> Doubt:
    return Doubt(NAMESPACE, name, digest(listed), digest(known))


# --- the ledger


def test_what_is_noted_is_held():
    book = ledger(a="1", b="2")
    assert len(book) == 2
    assert book.holds(NAMESPACE, b"a", "1") and not book.holds(NAMESPACE, b"a", "2")
    assert book.holds(NAMESPACE, b"c", "") and not book.holds(NAMESPACE, b"a", "")
    book.note(NAMESPACE, b"a", "3")
    assert book.holds(NAMESPACE, b"a", "3") and len(book) == 2
    book.forget(NAMESPACE, b"a")
    book.forget(NAMESPACE, b"never")
    assert book.holds(NAMESPACE, b"a", "") and len(book) == 1
    book.begin()
    assert len(book) == 1 and book.holds(NAMESPACE, b"b", "2")
    book.note(NAMESPACE, b"a", "")
    assert not book.holds(NAMESPACE, b"a", ""), "it is there, in whatever version"


def test_a_list_leaves_what_it_has():
    book = ledger(a="1", b="2", c="3")
    book.begin()
    book.note(NAMESPACE, b"a", "1")
    book.forget(NAMESPACE, b"b")
    assert book.absent() == {place_of(NAMESPACE, b"c")}
    book.sweep()
    assert len(book) == 1 and book.holds(NAMESPACE, b"a", "1")
    book.drop(place_of(NAMESPACE, b"a"))
    assert len(book) == 1, "who has been heard of stays"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_it_is_a_dictionary(seed):
    luck = random.Random(seed)
    book, model = Ledger(), dict[bytes, str]()
    names = [b"pod-%d" % number for number in range(3000)]
    for number in range(6000):
        name = luck.choice(names)
        if luck.random() < 0.4:
            book.forget(NAMESPACE, name)
            model.pop(name, None)
        else:
            model[name] = str(number + 1)
            book.note(NAMESPACE, name, model[name])
        if not luck.randrange(1000):
            book.begin()
    assert len(book) == len(model)
    book.begin()
    assert len(book) == len(model) and len(book.absent()) == len(model)
    assert all(book.holds(NAMESPACE, name, model.get(name, "")) for name in names)
    gone = luck.sample(names, 1000)
    for name in gone:
        book.drop(place_of(NAMESPACE, name))
        model.pop(name, None)
    assert len(book) == len(model)
    assert all(book.holds(NAMESPACE, name, model.get(name, "")) for name in names)


def test_the_largest_cluster_takes_two_mebibytes():
    book = Ledger()
    for number in range(150_000):
        book.note(b"namespace-%d" % (number % 100), b"deployment-%d-5f7d9c8b6d-x%d" % (number % 3000, number), "1")
    assert len(book) == 150_000 and book.size < 2 * 2**20, book.size


def test_rounds_are_counted_round_and_round():
    book = ledger(a="1")
    for _ in range(600):
        one = Round(book)
        one.compare(page(a="1"))
        assert not one.open() and not one.absent()
    assert len(book) == 1


def test_too_many_deletions_end_the_round_and_are_forgotten(monkeypatch):
    monkeypatch.setattr(limits, "AUDIT_DELETED", 10)
    book = ledger(a="1")
    one = Round(book)
    for number in range(11):
        assert not one.overtaken
        book.forget(NAMESPACE, b"%d" % number)
    assert one.overtaken and len(book) == 1 and book.size < ledger(a="1").size + 100


# --- a round


def test_equal_is_equal():
    one = Round(ledger(a="1", b="2"))
    one.compare(page("more", a="1"))
    assert not one.absent(), "the list is not whole yet"
    one.compare(page(b="2"))
    assert not one.open() and not one.absent() and not one.full and not one.overtaken


def test_what_differs():
    one = Round(ledger(a="1", b="2", c="3"))
    one.compare(page(a="1", b="7", d="8"))
    assert one.open() == [doubt(b"b", "7", "2"), doubt(b"d", "8", "")]
    assert one.absent() == {place_of(NAMESPACE, b"c")}
    assert one.accuse(NAMESPACE, b"c") == doubt(b"c", "", "3")


def test_what_the_watch_tells_before_its_page_is_left_out():
    book = ledger(a="1", b="2", c="3", e="5")
    one = Round(book)
    book.note(NAMESPACE, b"a", "9")
    book.forget(NAMESPACE, b"b")
    book.note(NAMESPACE, b"d", "9")
    book.note(NAMESPACE, b"e", "9")
    book.forget(NAMESPACE, b"e")
    one.compare(page(a="1", b="2", c="3", e="5"))
    assert not one.open() and not one.absent()


def test_what_the_watch_tells_after_its_page_explains_it():
    book = ledger(a="1", b="2", c="3")
    one = Round(book)
    one.compare(page(a="9", d="8", e="7"))
    assert len(one.open()) == 3 and len(one.absent()) == 2
    book.note(NAMESPACE, b"a", "9")
    book.forget(NAMESPACE, b"b")
    book.note(NAMESPACE, b"d", "10")
    assert one.open() == [doubt(b"e", "7", "")]
    assert one.absent() == {place_of(NAMESPACE, b"c")}


def test_a_list_overtakes_a_round():
    book = ledger(a="1")
    one = Round(book)
    book.begin()
    assert one.overtaken


def test_differences_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "AUDIT_DOUBTS", 2)
    one = Round(ledger())
    one.compare(page(a="1"))
    assert not one.full
    one.compare(page(b="1", c="1", d="1"))
    assert one.full and len(one.open()) == 2


# --- what comes


def listed(*metas: dict[str, str], kind: object = "PartialObjectMetadataList", **meta: object) -> bytes:
    items = [{"metadata": one, "spec": {"x": [1]}} for one in metas]
    return json.dumps({"kind": kind, "metadata": {"resourceVersion": "9"} | meta, "items": items}).encode()


A = {"name": "a", "namespace": "default", "resourceVersion": "5", "uid": "x"}


def test_pages():
    assert decode_metadata("pods", listed(A, **{"continue": "t"})) == Metadata(
        [Item(b"default", b"a", "5")], "9", "t", True
    )
    whole = decode_metadata("namespaces", listed({"name": "a", "resourceVersion": "5"}, kind="NamespaceList"))
    assert whole.items == [Item(b"", b"a", "5")] and not whole.partial
    empty = decode_metadata("pods", b'{"metadata":{"resourceVersion":"1"},"items":null}')
    assert empty == Metadata([], "1", "", False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"metadata":{"resourceVersion":"1"}}',
        listed(A, kind="ServiceList"),
        listed(A, kind=5),
        listed(A, resourceVersion=""),
        listed({"name": "a", "namespace": "default"}),
        listed({"name": "", "resourceVersion": "5"}),
        listed({"namespace": "default", "resourceVersion": "5"}),
    ],
)
def test_pages_that_make_no_sense(data):
    with pytest.raises(ObjectError, match="metadata of pods: "):
        decode_metadata("pods", data)


def test_tokens_of_lists_that_are_too_old():
    assert decode_token(b'{"kind":"Status","code":410,"metadata":{"continue":"t"}}') == "t"
    assert decode_token(b'{"kind":"Status","code":410,"metadata":{}}') == decode_token(b"nonsense") == ""


def test_one_object():
    a = Item(b"default", b"a", "5")
    assert named("pods", [a], b"default", b"a") == "5" and named("pods", [], b"default", b"a") == ""
    with pytest.raises(ObjectError, match="asked for one object"):
        named("pods", [a, Item(b"default", b"b", "6")], b"default", b"a")

"""Which names are proven not to exist."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.denial import Denial, Existing, make_existing
from kdns.message import FOREVER, NO_LEASE, Lease
from kdns.name import from_labels, from_text
from tests.support import TWINS, use_twin


@pytest.fixture(params=TWINS, autouse=True)
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use_twin(request.param, monkeypatch)


APEX = from_text("svc.cluster.local.")


def relative(text: str) -> bytes:
    return from_text(text, b"")


def two_deep(*names: str) -> Existing:
    existing = make_existing(2)
    for name in names:
        existing.add(relative(name))
    return existing


def test_what_is_denied() -> None:
    existing = two_deep("dev", "web.dev", "db.gone")
    denied = ["x", "a.x", "db.dev", "a.b.db.dev", "www.example.com.dev", "gone", "db.gone", "a.db.gone", "deva", "web"]
    assert all(existing.denies(relative(name)) for name in denied)
    assert not any(existing.denies(relative(name)) for name in ("dev", "web.dev", "a.web.dev", "a.b.c.web.dev"))
    assert not existing.denies(b"")
    assert not two_deep().denies(b"")
    assert two_deep().denies(relative("x"))


def test_it_follows_what_comes_and_goes() -> None:
    existing = two_deep("dev")
    assert existing.denies(relative("a.web.dev"))
    existing.add(relative("web.dev"))
    assert len(existing) == 2 and relative("web.dev") in existing
    assert not existing.denies(relative("a.web.dev"))
    existing.discard(relative("web.dev"))
    assert existing.denies(relative("a.web.dev")) and relative("web.dev") not in existing
    existing.clear()
    assert len(existing) == 0 and existing.denies(relative("dev"))


label = st.sampled_from([b"a", b"b", b"c", b"aa", b"a\1b"])
names = st.lists(label, min_size=1, max_size=5)


@given(st.sets(st.tuples(label) | st.tuples(label, label) | st.tuples(label, label, label)), names, st.integers(1, 3))
def test_a_name_is_denied_exactly_when_it_ends_in_one_that_is_not_there(
    there: set[tuple[bytes, ...]], name: list[bytes], depth: int
) -> None:
    existing = make_existing(depth)
    for labels in there:
        if len(labels) <= depth:
            existing.add(from_labels(labels, b""))
    ends = [tuple(name[-count:]) for count in range(1, min(depth, len(name)) + 1)]
    wire = from_labels(name, b"")
    assert existing.denies(wire) == any(end not in there for end in ends)
    if not isinstance(existing, Existing):  # only the Python packet cache reads labels itself
        return
    starts = [len(from_labels(name[:count], b"")) for count in range(len(name))]
    assert existing.lacks(wire + b"\3svc", starts, len(wire)) == existing.denies(wire)


def test_who_combines_leases_has_no_proof() -> None:
    lease = Lease(FOREVER, (b"a",), denial=Denial(APEX, make_existing(2)))
    assert lease.denial is not None
    assert lease.shrink(FOREVER).denial is None
    assert lease.meet(NO_LEASE).denial is None and NO_LEASE.meet(lease).denial is None
    assert lease.meet(Lease(FOREVER, duties=(lambda *_: None,))).denial is None


def test_sets_of_names_are_compared_by_identity() -> None:
    one = make_existing(1)
    assert Denial(APEX, one) == Denial(APEX, one) != Denial(APEX, make_existing(1))

"""Things by the facts they stand on, against a plain model."""

from hypothesis import given
from hypothesis import strategies as st

from kdns.standing import Standing

facts = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=3)
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 4), facts), max_size=30)


@given(steps)
def test_it_agrees_with_sets(steps: list[tuple[bool, int, list[bytes]]]) -> None:
    standing: Standing[int] = Standing()
    model: dict[bytes, set[int]] = {b"a": set(), b"b": set(), b"c": set()}
    for add, thing, on in steps:
        (standing.add if add else standing.remove)(thing, on)
        for fact in on:
            (model[fact].add if add else model[fact].discard)(thing)
    for fact, things in model.items():
        found = standing.on(fact)
        assert len(found) == len(things) and set(found) == things
    assert len(standing) == sum(1 for things in model.values() if things)

"""The table of states behind lists and watches: what is asked next, and what the index is told."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import limits
from kdns.cluster import pace
from kdns.cluster import watch as watches
from kdns.cluster.ask import ALL, Selection
from kdns.cluster.decoding import Page, Status, WatchEvent
from kdns.cluster.objects import Apply, Delete, Init, InitApply, InitDone, Namespace
from kdns.cluster.watch import (
    BEGINNING,
    GRACE,
    LIFETIME,
    SILENCE,
    WHOLE,
    Ended,
    Failed,
    Late,
    Listed,
    Nonsense,
    Opened,
    Oversize,
    Refused,
    State,
    Watch,
)

A, B, C = Namespace(b"a"), Namespace(b"b"), Namespace(b"c")
INIT, DONE = Init("namespaces"), InitDone("namespaces")


def make(kind: str = "namespaces", selection: Selection = ALL) -> Watch:
    return Watch(kind, selection, lambda: 0.5)


def query(watch: Watch) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(watch.request.target).query))


def event(type: str, found: Namespace | None = None, version: str = "", ends: bool = False) -> WatchEvent:
    name = found.name if found else b""
    return WatchEvent(type, None if type == "DELETED" else found, b"", name, version, ends)


def page(*objects: Namespace, version: str = "7", token: str = "", size: int = 1000, odd: int = 0) -> Listed:
    return Listed(Page(list(objects), ["odd"] * odd, version, token), size)


def first(found: Namespace) -> InitApply:
    return InitApply("namespaces", found)


def feed(watch: Watch, *inputs: watches.Input, now: float = 0.0) -> list[object]:
    return [told for what in inputs for told in watch.feed(what, now)]


def listing(kind: str = "namespaces") -> Watch:
    """One whose server cannot stream."""
    watch = make(kind)
    feed(watch, Refused(Status(422)))
    assert watch.state is State.LIST
    return watch


def watching(version: str = "7", now: float = 0.0) -> Watch:
    """One that is in step, with an open watch."""
    watch = make()
    feed(watch, Opened(), event("ADDED", A), event("BOOKMARK", version=version, ends=True), now=now)
    assert watch.synced and watch.state is State.WATCH and watch.open and not watch.trouble
    return watch


# --- requests


def test_at_first_a_streamed_list_is_asked_for():
    watch = make("endpointslices", Selection("app in (a, b)", "metadata.name!=x"))
    assert watch.request.verb == "watch" and watch.request.wait == 0
    assert watch.request.target.startswith("/apis/discovery.k8s.io/v1/endpointslices?")
    assert query(watch) == {
        "labelSelector": "app in (a, b)",
        "fieldSelector": "metadata.name!=x",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "450",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }


def test_watches_last_five_to_ten_minutes():
    assert LIFETIME == (300, 600)
    assert "timeoutSeconds=300&" in Watch("pods", chance=lambda: 0.0).request.target
    assert "timeoutSeconds=599&" in Watch("pods", chance=lambda: 0.999).request.target


@pytest.mark.parametrize("code", [400, 405, 406, 415, 422])
def test_a_server_that_cannot_stream_is_asked_for_pages_at_once(code):
    watch = make(selection=Selection(labels="x=y"))
    feed(watch, Refused(Status(code)))
    assert watch.request.verb == "list" and watch.request.wait == 0
    assert query(watch) == {"labelSelector": "x=y", "limit": "100"}


# --- streamed lists


def test_streamed_list_then_changes():
    watch = make()
    told = feed(watch, Opened(), event("ADDED", A), event("ADDED", B), event("DELETED", A), event("BOOKMARK"))
    assert told == [INIT, first(A), first(B), Delete("namespaces", b"", b"a")]
    assert not watch.synced
    assert feed(watch, event("BOOKMARK", version="9", ends=True)) == [DONE]
    assert watch.synced and watch.open and watch.version == "9"
    told = feed(watch, event("MODIFIED", A, "10"), event("DELETED", B, "11"), event("BOOKMARK", version="15"))
    assert told == [Apply("namespaces", A), Delete("namespaces", b"", b"b")]
    assert watch.version == "15"
    feed(watch, Failed("gone"))
    feed(watch, page(version="20"))
    assert query(watch)["resourceVersion"] == "15" and "sendInitialEvents" not in query(watch)


def test_empty_streamed_list():
    watch = make()
    assert feed(watch, Opened(), event("BOOKMARK", version="9", ends=True)) == [INIT, DONE]


def test_a_streamed_list_that_falls_silent_turns_into_pages_for_good():
    watch = make()
    feed(watch, Opened(), now=10.0)
    assert watch.deadline == 10.0 + BEGINNING
    feed(watch, event("ADDED", A), now=14.0)
    assert watch.deadline == 14.0 + SILENCE
    assert feed(watch, Late(), now=19.0) == []
    assert watch.state is State.LIST and not watch.open and "silent" in watch.trouble
    told = feed(watch, page(A))
    assert told == [INIT, first(A), DONE], "the list starts again"
    feed(watch, Opened(), event("ERROR"), now=100.0)
    assert watch.state is State.LIST, "the stream is not tried again"


@pytest.mark.parametrize("kept", ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"])
def test_a_streamed_list_without_its_end_turns_into_pages_however_busy_the_cluster_is(kept):
    watch = make()
    feed(watch, Opened(), event("ADDED", A), now=0.0)
    now, version = 0.0, 1
    while watch.deadline > now + 1.0:
        now += 1.0
        version += 1
        feed(watch, event(kept, B, str(version)), now=now)
        assert watch.state is State.STREAM and now <= WHOLE
    assert now >= WHOLE - 2.0 if kept == "ADDED" else now <= SILENCE
    feed(watch, Late(), now=watch.deadline)
    assert watch.state is State.LIST
    feed(watch, page(A), Opened(), now=100.0)
    feed(watch, WatchEvent("ERROR", status=Status(410)), now=200.0)
    assert watch.state is State.LIST, "the stream is not tried again"


def test_a_streamed_list_that_does_not_begin_turns_into_pages_this_time():
    watch = make()
    feed(watch, Opened(), Late())
    assert watch.state is State.LIST
    feed(watch, page(A))
    feed(watch, Opened(), WatchEvent("ERROR", status=Status(410)), now=100.0)
    assert watch.state is State.STREAM


@pytest.mark.parametrize(
    "what", [Ended(), Nonsense("x"), Refused(Status(500)), WatchEvent("ERROR", status=Status(500))]
)
def test_a_streamed_list_that_breaks_turns_into_pages_this_time(what):
    watch = make()
    feed(watch, Opened(), event("ADDED", A))
    assert feed(watch, what) == []
    assert watch.state is State.LIST and watch.request.wait > 0 and not watch.open
    assert feed(watch, page(B)) == [INIT, first(B), DONE]
    feed(watch, Opened(), WatchEvent("ERROR", status=Status(410, "Expired")), now=100.0)
    assert watch.state is State.STREAM, "the next list is streamed again"


def test_a_connection_lost_in_a_streamed_list_is_followed_by_pages_only_if_something_had_come():
    watch = make()
    feed(watch, Failed("refused"))
    assert watch.state is State.STREAM and watch.trouble == "list: refused"
    feed(watch, Opened(), event("ADDED", A), Failed("cut"))
    assert watch.state is State.LIST


def test_a_streamed_list_beyond_its_bound_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "API_LIST", 2)
    watch = make()
    told = feed(watch, Opened(), event("ADDED", A), event("ADDED", B), event("ADDED", C))
    assert told == [INIT, first(A), first(B)]
    assert not watch.open and not watch.synced and watch.request.wait >= 60 and "more than 2" in watch.trouble


# --- pages


def test_pages_then_watch():
    watch = listing()
    assert feed(watch, page(A, token="t")) == [INIT, first(A)]
    assert query(watch)["continue"] == "t" and not watch.synced and watch.request.wait == 0
    assert feed(watch, page(B)) == [first(B), DONE]
    assert watch.request.verb == "watch" and query(watch)["resourceVersion"] == "7"


@pytest.mark.parametrize("kind, largest", [("services", 500), ("endpointslices", 200)])
def test_pages_are_as_large_as_can_be_read_without_holding_up_queries(kind, largest):
    watch = listing(kind)
    feed(watch, page(token="t", size=watches.PAGE_SIZE * 4))
    assert query(watch)["limit"] == "25"
    feed(watch, page(token="t", size=1))
    assert query(watch)["limit"] == str(largest)
    feed(watch, page(token="t", size=10**9))
    assert query(watch)["limit"] == "1"
    feed(watch, page(token="t", size=0))
    assert query(watch)["limit"] == str(largest)


def test_a_page_beyond_its_bound_is_asked_for_in_smaller_pieces():
    watch = listing()
    assert feed(watch, Oversize(), Oversize()) == []
    assert query(watch)["limit"] == "25" and watch.request.wait == 0
    feed(watch, *[Oversize()] * 4)
    assert query(watch)["limit"] == "1" and watch.request.wait == 0
    feed(watch, Oversize())
    assert watch.request.wait > 0 and "one object" in watch.trouble


def test_pages_go_on_where_they_broke_off():
    watch = listing()
    feed(watch, page(A, token="t"), Failed("cut"))
    assert query(watch)["continue"] == "t" and watch.request.wait > 0 and watch.trouble == "list: cut"
    feed(watch, Refused(Status(503)))
    assert feed(watch, page(B)) == [first(B), DONE]
    assert not watch.trouble


@pytest.mark.parametrize("what", [Refused(Status(410)), Refused(Status(400)), Nonsense("no list")])
def test_pages_start_again_when_their_list_is_lost(what):
    watch = listing()
    feed(watch, page(A, token="t"))
    assert feed(watch, what) == []
    assert "continue" not in query(watch) and watch.request.wait > 0
    assert feed(watch, page(B)) == [INIT, first(B), DONE]


def test_a_list_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "API_LIST", 3)
    watch = listing()
    feed(watch, page(A, B, token="t"))
    assert feed(watch, page(C, token="t", odd=1)) == []
    assert "continue" not in query(watch) and watch.request.wait >= 60


# --- watches


def test_a_watch_that_ends_in_time_goes_on_at_once():
    watch = watching()
    assert watch.deadline == 450 + GRACE
    assert feed(watch, Ended(), now=450.0) == []
    assert watch.state is State.WATCH and watch.request.wait == 0 and not watch.trouble


@pytest.mark.parametrize("what, trouble", [(Ended(), ""), (Failed("cut"), "watch: cut"), (Late(), "watch: silent")])
def test_a_watch_that_ends_early_is_followed_by_a_probe(what, trouble):
    watch = watching()
    feed(watch, what, now=100.0)
    assert watch.state is State.PROBE and watch.request.wait <= 0.1
    assert watch.trouble.startswith(trouble) and bool(watch.trouble) == bool(trouble)
    assert watch.request.target == "/api/v1/namespaces?limit=1"
    assert feed(watch, page(A, version="8")) == []
    assert watch.state is State.WATCH and watch.request.wait == 0 and query(watch)["resourceVersion"] == "7"
    feed(watch, Opened())
    assert not watch.trouble


def test_a_watch_without_the_bookmarks_that_it_used_to_have_is_given_up():
    watch = watching(now=0.0)
    bookmark = event("BOOKMARK", version="8")
    feed(watch, bookmark, now=50.0)
    assert watch.deadline == 450 + GRACE, "one is no rhythm"
    feed(watch, bookmark, now=110.0)
    assert watch.deadline == 110 + 2.5 * 60
    feed(watch, event("ADDED", B, "9"), now=150.0)
    assert watch.deadline == 150 + 2.5 * 60, "every line shows that it lives"
    feed(watch, event("BOOKMARK", version="10"), now=160.0)
    assert watch.deadline == 160 + 2.5 * 60
    feed(watch, Late(), now=310.0)
    assert watch.state is State.PROBE
    feed(watch, page(version="11"), Opened(), now=311.0)
    assert watch.deadline == 311 + 2.5 * 60
    feed(watch, event("BOOKMARK", version="11"), now=400.0)
    assert watch.deadline == 400 + 2.5 * 60, "the pause between two streams does not count"
    assert query(watch)["resourceVersion"] == "10"


def test_fast_bookmarks_do_not_make_us_impatient():
    watch = watching(now=0.0)
    feed(watch, event("BOOKMARK", version="8"), now=1.0)
    feed(watch, event("BOOKMARK", version="8"), now=1.1)
    assert watch.deadline == 11.1


@pytest.mark.parametrize("what", [Failed("x"), Nonsense("x"), Oversize(), Refused(Status(403))])
def test_probes_are_repeated_until_they_are_answered(what):
    watch = watching()
    feed(watch, Failed("cut"), now=100.0)
    waits = []
    for _ in range(9):
        assert feed(watch, what, now=100.0) == []
        assert watch.state is State.PROBE and watch.trouble.startswith("watch: ")
        waits.append(watch.request.wait)
    assert waits == sorted(waits) and waits[-1] <= 1.8


@pytest.mark.parametrize(
    "version, state", [("6", State.STREAM), ("7", State.WATCH), ("8", State.WATCH), ("opaque", State.WATCH)]
)
def test_a_server_that_went_back_is_listed_anew(version, state):
    watch = watching()
    feed(watch, Failed("cut"), page(version=version), now=100.0)
    assert watch.state is state and watch.request.wait == 0
    assert ("went back" in watch.trouble) == (state is State.STREAM)


@pytest.mark.parametrize(
    "status", [Status(410, "Expired"), Status(400), Status(504, "", "Too large resource version: 9")]
)
def test_a_version_that_the_server_does_not_have_is_listed_anew(status):
    watch = watching()
    feed(watch, Failed("cut"), page(), Refused(status), now=100.0)
    assert watch.state is State.STREAM and watch.request.wait == 0


def test_an_error_event_leads_to_a_list():
    watch = watching()
    feed(watch, WatchEvent("ERROR", status=Status(410, "Expired", "too old")), now=100.0)
    assert watch.state is State.STREAM and not watch.open and watch.trouble == "watch: 410 Expired too old"
    watch = watching()
    feed(watch, WatchEvent("ERROR"), now=100.0)
    assert watch.state is State.STREAM and watch.trouble == "watch: refused"
    watch = watching()
    feed(watch, WatchEvent("ERROR", status=Status(429, retry_after=2)), now=100.0)
    assert watch.state is State.WATCH and 2 <= watch.request.wait <= 2.4


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
def test_other_refusals_are_waited_out(code):
    watch = watching()
    feed(watch, Failed("cut"), page(), Refused(Status(code, retry_after=5)), now=100.0)
    assert watch.state is State.WATCH and 5 <= watch.request.wait <= 6 and str(code) in watch.trouble


def test_retry_after_also_puts_off_a_list():
    watch = watching()
    feed(watch, WatchEvent("ERROR", status=Status(410, retry_after=5)), now=100.0)
    assert watch.state is State.STREAM and 5 <= watch.request.wait <= 6


def test_a_second_relist_has_to_wait_and_the_watch_is_tried_meanwhile():
    watch = watching(now=0.0)
    feed(watch, WatchEvent("ERROR", status=Status(410)), now=0.5)
    assert watch.state is State.WATCH and watch.request.wait < 0.2, "the next list is due at 2.0"
    feed(watch, Opened(), now=0.6)
    assert watch.deadline == 2.0 and watch.trouble, "still in doubt"
    assert feed(watch, event("ADDED", B, "8"), now=0.7) == [Apply("namespaces", B)]
    feed(watch, Late(), now=2.0)
    assert watch.state is State.STREAM and watch.request.wait == 0 and not watch.open


def test_a_silent_watch_in_doubt_does_not_bring_the_next_list_forward(monkeypatch):
    monkeypatch.setattr(pace, "FIRST_GAP", 40.0)
    watch = watching(now=0.0)
    for now in (1.0, 2.0):
        feed(watch, event("BOOKMARK", version="8"), now=now)
    feed(watch, event("BOOKMARK", version="7"), now=3.0)
    assert watch.deadline == 13.0 and watch.trouble, "the next list is due at 40.0"
    feed(watch, Late(), now=13.0)
    assert watch.state is State.PROBE, "another watch is tried meanwhile"
    feed(watch, page(version="9"), Opened(), now=14.0)
    feed(watch, event("ADDED", B, "9"), now=39.0)
    assert watch.deadline == 40.0
    feed(watch, Late(), now=40.0)
    assert watch.state is State.STREAM and watch.request.wait == 0


def test_a_line_that_makes_no_sense_is_skipped_and_leads_to_a_list():
    watch = watching()
    assert feed(watch, Nonsense("line 1"), now=100.0) == []
    assert watch.open and watch.deadline == 100.0 and watch.trouble == "watch: line 1"
    assert feed(watch, event("ADDED", B, "8"), now=100.0) == [Apply("namespaces", B)]
    feed(watch, Late(), now=100.0)
    assert watch.state is State.STREAM


def test_an_event_out_of_order_is_applied_but_not_trusted():
    watch = watching()
    feed(watch, event("ADDED", B, "20"), now=100.0)
    assert feed(watch, event("ADDED", B, "20"), now=100.0) == [Apply("namespaces", B)]
    assert not watch.trouble, "a repetition is harmless"
    assert feed(watch, event("ADDED", C, "19"), now=100.0) == [Apply("namespaces", C)]
    assert watch.version == "20" and watch.deadline == 100.0 and "19 came after 20" in watch.trouble


def test_versions_that_are_no_numbers_are_taken_as_they_come():
    watch = watching("opaque")
    feed(watch, event("ADDED", B, "9" * 5000), event("ADDED", B, "x"), event("ADDED", B, ""))
    assert watch.version == "x" and not watch.trouble


def test_a_long_lived_stream_ends_a_row_of_failures():
    watch = watching()
    feed(watch, *[Failed("x")] * 10, now=1.0)
    assert watch.request.wait > 1
    feed(watch, page(), Opened(), now=2.0)
    feed(watch, Failed("x"), now=4.0)
    assert watch.request.wait > 1, "2 s are not long"
    feed(watch, page(), Opened(), now=10.0)
    feed(watch, Failed("x"), now=20.0)
    assert watch.request.wait < 0.1


def test_starting_over_after_events_were_lost():
    watch = watching()
    watch.start_over("bug", 100.0)
    assert watch.state is State.STREAM and watch.trouble == "watch: bug" and not watch.open
    watch = listing()
    feed(watch, page(A, token="t"))
    watch.start_over("bug", 100.0)
    assert watch.state is State.LIST and "continue" not in query(watch) and watch.request.wait > 0


# --- whatever comes

STREAM_INPUTS = st.sampled_from(
    [
        Opened(),
        event("ADDED", A, "5"),
        event("MODIFIED", B, "8"),
        event("DELETED", A, "9"),
        event("BOOKMARK", version="12"),
        event("BOOKMARK", version="12", ends=True),
        WatchEvent("ERROR", status=Status(410)),
        WatchEvent("ERROR", status=Status(500)),
        Nonsense("line"),
        Ended(),
        Late(),
        Failed("cut"),
        Refused(Status(429, retry_after=3)),
        Refused(Status(422)),
    ]
)
LIST_INPUTS = st.sampled_from(
    [
        page(A, token="t"),
        page(B, version="3"),
        page(version="12"),
        Oversize(),
        Nonsense("page"),
        Failed("cut"),
        Refused(Status(410)),
        Refused(Status(503)),
    ]
)


def fits(watch: Watch, what: watches.Input) -> bool:
    """Whether the shell could feed this now."""
    if watch.request.verb == "list":
        return not isinstance(what, Opened | WatchEvent | Ended | Late)
    if isinstance(what, Opened | Refused):
        return not watch.open
    return watch.open or isinstance(what, Failed)


@settings(deadline=None)
@given(st.data())
def test_whatever_comes_the_index_hears_whole_lists_and_the_server_is_not_flooded(data):
    watch, now, inside, requests = make(), 0.0, False, 0
    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(
            (LIST_INPUTS if watch.request.verb == "list" else STREAM_INPUTS).filter(lambda w: fits(watch, w))
        )
        asked = watch.request
        if not watch.open:
            now += asked.wait
            requests += 1
        now += 0.01
        for told in watch.feed(what, now):
            if isinstance(told, Init):
                inside = True
            elif isinstance(told, InitApply):
                assert inside
            elif isinstance(told, InitDone):
                assert inside
                inside = False
            elif isinstance(told, Apply):
                assert not inside and watch.synced
        assert watch.request.wait >= 0
        assert not watch.open or watch.request is asked or watch.deadline > 0
        if isinstance(what, Nonsense | Failed | Refused | Oversize) and watch.trouble == "":
            assert watch.request.verb == "list" and watch.request.wait == 0


@pytest.mark.parametrize("resume", [Refused(Status(410)), WatchEvent("ERROR", status=Status(410))])
def test_five_minutes_of_410_cost_ten_lists_and_a_request_a_second(resume):
    watch, now, lists, requests = make(), 0.0, 0, 0
    while now < 300:
        now += watch.request.wait
        requests += 1
        if watch.state is State.STREAM:
            lists += 1
            feed(watch, Opened(), event("BOOKMARK", version="7", ends=True), resume_event(resume), now=now)
        else:
            if isinstance(resume, WatchEvent):
                feed(watch, Opened(), now=now)
            feed(watch, resume, now=now)
    assert lists <= 10 and requests <= 310


def resume_event(resume: watches.Input) -> watches.Input:
    return resume if isinstance(resume, WatchEvent) else Failed("cut")


def test_ten_minutes_without_a_server_cost_a_connection_a_second():
    watch, now, requests = watching(), 0.0, 0
    while now < 600:
        feed(watch, Failed("refused"), now=now)
        now += watch.request.wait
        assert watch.request.wait <= 1.8
        requests += 1
    assert requests <= 600

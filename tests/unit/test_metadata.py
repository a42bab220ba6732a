from __future__ import annotations

from collections.abc import Callable

from kdns.message import Query
from kdns.plugin import Plugin
from kdns.plugins.metadata import Metadata
from tests.plugintest import LEASE, End, ask, at_once, new_site, refused, set_up


class Teller(Plugin):
    name = "teller"

    def __init__(self, label: str) -> None:
        self.label = label
        self.read = 0

    def metadata(self, query: Query) -> dict[str, Callable[[], str]]:
        def value() -> str:
            self.read += 1
            return f"{self.label} of {query.id}"

        return {f"teller/{self.label}": value}


async def test_labels() -> None:
    site = new_site("example.org")
    plugin = set_up(Metadata, "metadata", site)
    tellers = Teller("a"), Teller("b")
    site.plugins |= {"metadata": plugin, "a": tellers[0], "b": tellers[1], "mute": Plugin()}
    await plugin.start()
    end = End()
    reply = at_once(plugin, ask("www.example.org."), end)
    assert reply.lease == LEASE
    labels = end.asked[0].metadata
    assert labels is not None
    assert sorted(labels) == ["teller/a", "teller/b"]
    assert tellers[0].read == 0
    assert labels["teller/a"]() == "a of 4711"
    # Outside the zones there are none, but what others add has a place.
    at_once(plugin, ask("example.com."), end)
    assert end.asked[1].metadata == {}


async def test_zones_of_its_own() -> None:
    site = new_site(".")
    plugin = set_up(Metadata, "metadata example.com 10.0.0.0/8", site)
    site.plugins["a"] = Teller("a")
    await plugin.start()
    end = End()
    for qname in ("example.com.", "1.10.in-addr.arpa.", "example.org."):
        at_once(plugin, ask(qname), end)
    assert [len(query.metadata or ()) for query in end.asked] == [1, 1, 0]


def test_what_is_wrong() -> None:
    assert refused(Metadata, "metadata a..b") == "zone is not a valid domain name: a..b"
    assert refused(Metadata, "metadata {\nx\n}") == "unknown property 'x'"
    assert refused(Metadata, "metadata\nmetadata") == "this plugin can only be used once per Server Block"

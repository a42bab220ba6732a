"""Events get lost on their way to a whole server: what it says becomes right again, whatever caches had to say."""

from __future__ import annotations

from tests.fakeapi import service
from tests.faults.test_api import ABSENT, Served, end, served
from tests.faults.tools import WEB, pulse, query, rcode
from tests.support import ask

__all__ = ["served"]
PEERS = "peers.default.svc.cluster.local."


async def test_lost_events_are_made_up_for_within_seconds(served: Served) -> None:
    served.conf.write_text(served.conf.read_text().replace("fallthrough", "audit 1s\nfallthrough"))
    api = served.api
    with await served.run() as kdns:
        await served.becomes(WEB, 0)
        async with pulse(served.port, query(PEERS), lambda reply: not rcode(reply) and reply[7] == 2) as peers:
            assert await served.rcode(ABSENT) == 3
            api.filter = lambda resource, lines: []
            api.put("services", service("nobody", cluster_ip="10.96.4.1"))
            api.delete("services", "web")
            assert await served.rcode(ABSENT) == 3 and await served.rcode(WEB) == 0, "it has not heard of it"
            await served.becomes(ABSENT, 0, 20)
            await served.becomes(WEB, 3, 20)
            assert bytes((10, 96, 4, 1)) in (await ask(served.port, ABSENT)).to_wire()
        assert peers.fine, vars(peers)
        assert "services: audit: " in kdns.read()
        await end(kdns)

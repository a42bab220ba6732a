from __future__ import annotations

import pytest

from kdns.message import Edns
from kdns.plugins.bufsize import Bufsize
from kdns.wire import reply_limit
from tests.plugintest import LEASE, End, ask, at_once, refused, set_up


@pytest.mark.parametrize(
    ("text", "offered", "passed_on", "limit"),
    [
        ("bufsize", 4096, 1232, 1232),
        ("bufsize", 800, 800, 800),
        ("bufsize 512", 4096, 512, 512),
        ("bufsize 4096", 65535, 4096, 4096),
        ("bufsize 4096", 100, 100, 512),
        ("bufsize 700\nbufsize 800", 4096, 700, 700),
    ],
)
def test_sizes(text: str, offered: int, passed_on: int, limit: int) -> None:
    end = End()
    query = ask(edns=Edns(offered, True, ((10, b"cookie"),)))
    reply = at_once(set_up(Bufsize, text), query, end)
    assert end.asked == [query.replace(edns=Edns(passed_on, True, ((10, b"cookie"),)))]
    assert reply_limit(query, reply) == limit
    assert reply.lease == LEASE


def test_without_edns_there_is_nothing_to_lower() -> None:
    end = End()
    reply = at_once(set_up(Bufsize, "bufsize 4096"), ask(), end)
    assert end.asked == [ask()]
    assert reply_limit(ask(), reply) == 512


@pytest.mark.parametrize("text", ["bufsize 511", "bufsize 4097", "bufsize x", "bufsize 512 512", "bufsize {\nx\n}"])
def test_what_is_wrong(text: str) -> None:
    assert refused(Bufsize, text)

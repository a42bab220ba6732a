"""An upstream in a process of its own, so that it is in time even where the test is not: one address for every name.

``python -m tests.e2e.upstream [HOST]`` prints its UDP port on 127.0.0.1 (or HOST) and goes on until it is ended.  Names
that begin with ``slow`` are answered `SLOW` seconds later.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

SLOW = 0.4
"""In a test of reloads many of them go by meanwhile."""
_RECORD = b"\xc0\x0c\0\1\0\1" + (60).to_bytes(4, "big") + b"\0\4\xc0\0\2\1"


def reply(query: bytes) -> bytes:
    """192.0.2.1 for an A question, nothing for others."""
    end = query.index(0, 12) + 5
    records = _RECORD if query[end - 4 : end] == b"\0\1\0\1" else b""
    return query[:2] + b"\x81\x80\0\1\0" + bytes((bool(records),)) + bytes(4) + query[12:end] + records


def main(host: str = "127.0.0.1") -> None:
    later: deque[tuple[float, bytes, tuple[str, int]]] = deque()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        print(sock.getsockname()[1], flush=True)
        while True:
            wait = max(0.0, later[0][0] - time.monotonic()) if later else None
            if select.select([sock], [], [], wait)[0]:
                query, peer = sock.recvfrom(4096)
                if query[13:17] == b"slow":
                    later.append((time.monotonic() + SLOW, reply(query), peer))
                else:
                    sock.sendto(reply(query), peer)
            while later and later[0][0] <= time.monotonic():
                _, packet, peer = later.popleft()
                sock.sendto(packet, peer)


if __name__ == "__main__":
    main(*sys.argv[1:])

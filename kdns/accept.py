"""Accept the connections of a listening socket, without spinning or dying when file descriptors run out.

asyncio's own servers try on at every connection then, and write a traceback to standard error for each.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from kdns import limits

_SHORT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts until it is closed; the socket stays its owner's."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[socket.socket, Any], asyncio.Protocol],
        make_room: Callable[[], None],
        tls: ssl.SSLContext | None,
        handshake_time: float,
    ) -> None:
        """``make`` gets a connection's socket and peer address and makes its protocol (OSError: it is gone already);
        ``make_room`` is called when there are no file descriptors; a TLS handshake may take ``handshake_time`` seconds.
        """
        self._sock = sock
        self._make, self._make_room = make, make_room
        self._handshake_time = handshake_time
        self.tls = tls
        """For the connections that come from now on; swap it to reload."""
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._task = self._loop.create_task(self._accept())

    def stop(self) -> None:
        """Accept no more."""
        self._task.cancel()

    def close(self) -> None:
        """Accept no more, and give up what is not open yet."""
        self.stop()
        for task in self._opening:
            task.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                sock, peer = await self._loop.sock_accept(self._sock)
            except OSError as error:
                if error.errno in _SHORT:
                    self._make_room()
                    await asyncio.sleep(limits.TCP_ACCEPT_PAUSE)
                else:
                    # The fault of the one connection that was to be accepted.
                    await asyncio.sleep(0)
                continue
            task = self._loop.create_task(self._open(sock, peer))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            # Without TLS a connection is open, and counted, as soon as the loop gets its turn.
            if len(self._opening) > (limits.TCP_HANDSHAKES if self.tls else limits.TCP_BATCH):
                await asyncio.wait(self._opening, return_when=asyncio.FIRST_COMPLETED)

    async def _open(self, sock: socket.socket, peer: Any) -> None:
        try:
            protocol = self._make(sock, peer)
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=self.tls,
                ssl_handshake_timeout=self._handshake_time if self.tls else None,
            )
        except OSError:
            # The client went away, or its TLS handshake failed: ssl.SSLError is an OSError.
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

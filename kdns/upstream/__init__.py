"""Ask other DNS servers: sockets, health, who is asked next, and what of the answers is believed.

::

    Group      the servers of one ``forward`` line          group.py, flight.py, choice.py
    Upstreams  all servers of the process, over reloads      server.py
    Upstream   one server: its sockets and its health        server.py, udp.py, stream.py, health.py, poller.py
    Ask        one question, Attempt: one packet of it       ask.py
    scrub      which records belong to an answer             scrub.py
    fair       who gives way when too much is under way      fair.py
"""

from kdns.upstream.ask import UpstreamError
from kdns.upstream.group import Group, Options
from kdns.upstream.server import Settings, Tls, Upstream, Upstreams

__all__ = ["Group", "Options", "Settings", "Tls", "Upstream", "UpstreamError", "Upstreams"]

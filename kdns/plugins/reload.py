"""reload: read the Corefile again when it has changed.

``reload [INTERVAL [JITTER]]``

Every INTERVAL (default 30s, at least 2s), shifted by up to half of JITTER (default 15s; 0, or at least 1s, and at
most half of INTERVAL) either way, the Corefile and all that it imports are read.  When what they say has changed, the
new configuration is checked as a whole and put in force; when it cannot be, the error is logged and the one that runs
goes on.  Sockets, caches, upstream health and the cluster index outlive a reload.  The last server block with this
directive decides for the process.

Metrics: ``coredns_reload_failed_total``, ``coredns_reload_version_info{hash, value}``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from kdns.corefile import Directive, only
from kdns.plugin import Plugin, Site

_INTERVAL: Final = 30.0
_JITTER: Final = 15.0
_LEAST_INTERVAL: Final = 2.0
_LEAST_JITTER: Final = 1.0


class Reload(Plugin):
    """How often to look for a changed Corefile; the server does the looking."""

    name = "reload"
    handles = False

    def __init__(self, interval: float) -> None:
        self.interval = interval
        """Seconds between looks."""

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``reload [INTERVAL [JITTER]]``."""
        use = only(uses)
        args = use.between(0, 2)
        interval = use.duration(args[0]) if args else _INTERVAL
        if interval < _LEAST_INTERVAL:
            raise use.error(f"interval value must be greater or equal to {_LEAST_INTERVAL:g}s")
        jitter = use.duration(args[1]) if len(args) > 1 else _JITTER
        if jitter and jitter < _LEAST_JITTER:
            raise use.error(f"jitter value must be 0 or greater or equal to {_LEAST_JITTER:g}s")
        jitter = min(jitter, interval / 2)
        # Replicas that read the same ConfigMap should not all restart their chains in the same second.
        return cls(interval + random.uniform(-jitter / 2, jitter / 2))  # noqa: S311

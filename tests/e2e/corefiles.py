"""Corefiles with the world taken out of them."""

from __future__ import annotations

import re

from tests.support import free_port


def here(text: str, upstream: str, api: str = "") -> str:
    """The Corefile for a test: free ports, no lameduck, no snapshot on this disk; ``upstream`` (address) and ``api``
    (URL) for whom it asks."""
    http = {directive: f"127.0.0.1:{free_port()}" for directive in ("health", "ready", "prometheus")}

    def on_free_port(match: re.Match[str]) -> str:
        return f"{match[1]}{match[2]} {http[match[2]]}"

    text = re.sub(r"^(\S.*?):\d+(?= )", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^( +)(health|ready|prometheus)\b( [^ \n]*:\d+)?", on_free_port, text, flags=re.MULTILINE)
    text = re.sub(r"lameduck \S+", "lameduck 0s", text)
    text = re.sub(r"snapshot \S+", "snapshot /proc/nowhere/cluster.snapshot", text)
    text = re.sub(r"endpoint \S+", f"endpoint {api}", text)
    return re.sub(r"^( +forward \S+) [^{#\n]*", rf"\1 {upstream} ", text, flags=re.MULTILINE)

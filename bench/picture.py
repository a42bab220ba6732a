"""CPU per query as a picture: bars by workload and peer, in SVG."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from bench.world import WORKLOADS

WIDTH, MARGIN, COLUMNS = 980, 24, 2
ROW, HEADING, GAP, TOP = 20, 26, 22, 86
LABEL, VALUE = 136, 52
"""Room for a peer's name before its bar, and for the figure behind it."""

STYLE = """
  .page { fill: #ffffff } .text { fill: #1f2328 } .dim { fill: #59636e } .axis { stroke: #d1d9e0 }
  .ours { fill: #1f6feb } .pure { fill: #7fb2f7 } .coredns { fill: #e08a1e } .floor { fill: #b7bfc7 }
  .other { fill: #74808c }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #f0f6fc } .dim { fill: #9198a1 } .axis { stroke: #3d444d }
    .ours { fill: #4493f8 } .pure { fill: #2a5a9c } .coredns { fill: #db8b2c } .floor { fill: #4a525b }
    .other { fill: #7d8894 }
  }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px }
  .title { font-size: 20px; font-weight: 600 } .heading { font-size: 14px; font-weight: 600 }
"""
COLOURS = {"echo": "floor", "kdns": "ours", "kdns-multisocket": "ours", "kdns-pure": "pure", "coredns": "coredns"}
"""Peer → class of its bar; others are ``other``."""


def svg(costs: dict[str, dict[str, float]], below: str) -> str:
    """A picture of microseconds by workload and peer; `below` is said under the title (where, when, how often)."""
    most = max((cost for row in costs.values() for cost in row.values()), default=1.0) or 1.0
    ends = [TOP] * COLUMNS
    parts: list[str] = []
    column_width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    scale = (column_width - LABEL - VALUE) / most
    for workload, row in costs.items():
        column = ends.index(min(ends))
        left = MARGIN + column * (column_width + GAP)
        parts += _panel(WORKLOADS[workload].what, row, left, ends[column], scale)
        ends[column] += HEADING + ROW * len(row) + GAP
    height = max(ends) + MARGIN - GAP // 2
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title about">',
        '<title id="title">CPU per DNS query, by workload and server</title>',
        f'<desc id="about">{escape(_in_words(costs))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="text title" x="{MARGIN}" y="38">CPU per answered query in microseconds (less is better)</text>',
        f'<text class="dim" x="{MARGIN}" y="60">{escape(below)}</text>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def _panel(title: str, row: dict[str, float], left: float, top: int, scale: float) -> Iterator[str]:
    """One workload: its peers, the cheapest first."""
    yield f'<text class="text heading" x="{left:g}" y="{top + 14}">{escape(title)}</text>'
    first, bar = top + HEADING, left + LABEL
    for number, (peer, cost) in enumerate(sorted(row.items(), key=lambda item: item[1])):
        y = first + number * ROW
        kind, width = COLOURS.get(peer, "other"), max(1.0, cost * scale)
        name = ' font-weight="600"' if kind in ("ours", "pure") else ""
        yield f'<text class="text" x="{bar - 8:g}" y="{y + 13}" text-anchor="end"{name}>{escape(peer)}</text>'
        yield f'<rect class="{kind}" x="{bar:g}" y="{y + 2}" width="{width:.1f}" height="{ROW - 5}" rx="2"/>'
        yield f'<text class="dim" x="{bar + width + 6:.1f}" y="{y + 13}">{cost:.1f}</text>'
    yield f'<line class="axis" x1="{bar:g}" x2="{bar:g}" y1="{first}" y2="{first + ROW * len(row) - 1}"/>'


def _in_words(costs: dict[str, dict[str, float]]) -> str:
    """The same for who cannot see it."""
    return " ".join(
        f"{WORKLOADS[workload].what}: {', '.join(f'{peer} {cost:.1f}' for peer, cost in row.items())}."
        for workload, row in costs.items()
    )

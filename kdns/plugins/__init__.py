"""The plugins, one module per Corefile directive, and how a directive finds its plugin.

A plugin's module is imported only when a Corefile names its directive: nobody pays memory for what is not used.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from kdns.errors import KdnsError
from kdns.plugin import API, ORDER, Plugin

BUILT_IN: Final[dict[str, str]] = {
    "bind": "Bind",
    "bufsize": "Bufsize",
    "cache": "Cache",
    "cancel": "Cancel",
    "debug": "Debug",
    "errors": "Errors",
    "file": "File",
    "forward": "Forward",
    "health": "Health",
    "hosts": "Hosts",
    "kubernetes": "Kubernetes",
    "loadbalance": "Loadbalance",
    "log": "Log",
    "loop": "Loop",
    "metadata": "Metadata",
    "multisocket": "Multisocket",
    "prometheus": "Prometheus",
    "ready": "Ready",
    "reload": "Reload",
    "rewrite": "Rewrite",
    "root": "Root",
    "template": "Template",
    "tls": "Tls",
    "whoami": "Whoami",
}
"""Directive → class in the module of the directive's name."""

GROUP: Final = "kdns.plugins"
"""Entry-point group of third-party plugins: ``directive = "package.module:Class"``."""


class PluginError(KdnsError):
    """A third-party plugin that cannot be used; the message names its package."""


@cache
def third_party() -> dict[str, EntryPoint]:
    """Directives that installed packages add, found once per process.  Raises PluginError when two claim the same."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in ORDER or point.name in found:
            raise PluginError(f"{_package(point)}: plugin '{point.name}' exists already")
        found[point.name] = point
    return found


@cache
def find(directive: str) -> type[Plugin]:
    """The plugin of a directive.

    Raises PluginError for a directive that CoreDNS knows and kdns does not have, for one that nobody knows
    (``Unknown directive 'x'``), and for a third-party plugin that does not keep the contract of ``kdns.plugin``.
    """
    if directive in BUILT_IN:
        plugin: type[Plugin] = getattr(import_module(f"kdns.plugins.{directive}"), BUILT_IN[directive])
        return plugin
    if directive in ORDER:
        raise PluginError(f"Directive '{directive}' is CoreDNS's, but kdns does not have it yet")
    point = third_party().get(directive)
    if point is None:
        raise PluginError(f"Unknown directive '{directive}'")
    return _load(point)


def _load(point: EntryPoint) -> type[Plugin]:
    try:
        plugin = point.load()
    except Exception as error:  # an import may raise anything, and must not end the process
        raise PluginError(f"{_package(point)}: plugin '{point.name}' cannot be imported: {error!r}") from error
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        raise PluginError(f"{_package(point)}: plugin '{point.name}' is not a kdns.plugin.Plugin")
    if plugin.api != API:
        raise PluginError(f"{_package(point)}: plugin '{point.name}' is for API {plugin.api}, kdns has {API}")
    return plugin


def order(directives: Collection[str]) -> tuple[str, ...]:
    """The whole chain order, with those of the third-party plugins among ``directives`` where they want to stand.

    A package that no Corefile names is not even imported: a broken one harms nobody.  Raises PluginError for one that
    names no place, or a place that does not exist.
    """
    chain = list(ORDER)
    for directive, point in third_party().items():
        if directive not in directives:
            continue
        plugin = find(directive)
        if bool(plugin.before) == bool(plugin.after):
            raise PluginError(f"{_package(point)}: plugin '{directive}' must name one of before and after")
        place = plugin.before or plugin.after
        if place not in chain:
            raise PluginError(f"{_package(point)}: plugin '{directive}' wants a place beside unknown '{place}'")
        chain.insert(chain.index(place) + (1 if plugin.after else 0), directive)
    return tuple(chain)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value

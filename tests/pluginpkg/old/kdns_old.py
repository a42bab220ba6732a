"""old: written for a version of the plugin contract that there never was."""

from kdns.plugin import Plugin


class Old(Plugin):
    """Never runs."""

    name = "old"
    api = 0
    after = "cache"

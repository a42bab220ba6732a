"""root: the directory that file names in this server block are relative to.

``root PATH``

Plugins that read files (``file``, ``hosts``, ``tls``, …) look for relative names below PATH instead of below the
working directory.  A PATH that does not exist yet is a warning; it may appear later.  The last one of several counts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from kdns.corefile import Directive
from kdns.plugin import Plugin, Site


class Root(Plugin):
    """Sets `Site.root` before other plugins are set up."""

    name = "root"
    handles = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``root PATH``."""
        for use in uses:
            use.no_block()
            site.root = use.arg()
        try:
            os.stat(site.root)
        except FileNotFoundError:
            site.logger(cls.name).warning(f"Root path does not exist: {site.root}")
        except (OSError, ValueError) as error:
            raise uses[-1].error(f"unable to access root path '{site.root}': {error}") from error
        return cls()

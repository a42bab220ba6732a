"""Files that are looked at again and again: has one become another since it was read?"""

from __future__ import annotations

import os
from typing import TypeAlias

Stamp: TypeAlias = tuple[int, int, int]
"""Modification time in ns, size in octets, inode: another one when a file, or the link to it, has been changed."""


def stamp(path: str) -> Stamp | None:
    """The stamp of what is at ``path`` now; None when that cannot be told."""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return None


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp out of a file's status; take that of the open file, so that it is of what is read."""
    return status.st_mtime_ns, status.st_size, status.st_ino

from __future__ import annotations

from pathlib import Path

from kdns.plugins.root import Root
from tests.plugintest import new_site, refused, set_up
from tests.support import captured_log


def test_file_names_are_relative_to_it(tmp_path: Path) -> None:
    site = new_site()
    plugin = set_up(Root, f"root /nowhere\nroot {tmp_path}", site)
    assert site.path("zones/db") == f"{tmp_path}/zones/db"
    assert site.path("/etc/hosts") == "/etc/hosts"
    assert not plugin.handles


def test_a_directory_that_is_not_there_yet_is_a_warning(tmp_path: Path) -> None:
    with captured_log() as log:
        set_up(Root, f"root {tmp_path}/later")
    assert log.lines == [f"[WARNING] plugin/root: Root path does not exist: {tmp_path}/later"]


def test_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(Root, "root") == "Wrong argument count or unexpected line ending after 'root'"
    assert refused(Root, "root a b") == "Wrong argument count or unexpected line ending after 'b'"
    assert refused(Root, "root / {\nx\n}") == "unknown property 'x'"
    assert refused(Root, f"root {tmp_path}/file/x").startswith(f"unable to access root path '{tmp_path}/file/x'")

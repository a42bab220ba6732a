"""The file of a snapshot: what is written is read, anything else is refused by name, nobody writes what is not his."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns import limits
from kdns.cluster import snapshotfile
from kdns.cluster.objects import KINDS, EndpointSlice, Namespace, Object, Pod, Port, Service
from kdns.cluster.snapshotfile import Header, Pen, Reader, SnapshotError, frame, unframe
from tests.indextest import namespace, pod, service, slice_of

HEADER = Header("https://10.96.0.1:443 0123456789abcdef", 1763718265.5, {"namespaces": "''", "services": "'a=b'"})
OBJECTS: dict[str, list[Object]] = {
    "namespaces": [namespace("default"), namespace("dev")],
    "endpointslices": [
        slice_of("web-a.dev", "10.1.0.1 host pod-0", "10.1.0.2", of="web"),
        slice_of("six.dev", "fd00::1", of="web", ports=()),
        slice_of("none.dev", of=""),
    ],
    "services": [
        service("web.dev", "10.96.0.1", "fd00::1", ports=("http 80", "- 53 UDP")),
        service("headless.dev"),
        service("ext.dev", externalName="www.Example.org"),
        service("bad.dev", externalName="192.0.2.1"),
    ],
    "pods": [pod("p-0.dev", "10.1.0.1", "fd00::1", labels={"app": "web"}), pod("p-1.dev")],
}


def write(path: Path, objects: dict[str, list[Object]] = OBJECTS, header: Header = HEADER) -> bytes:
    pen = Pen(str(path))
    pen.begin(header)
    for kind, found in objects.items():
        pen.write(frame(kind, found))
    pen.commit()
    pen.close()
    data = path.read_bytes()
    assert pen.size == len(data) - 32
    return data


def read(path: Path) -> tuple[Header, list[tuple[str, list[Object]]]]:
    reader = Reader(str(path))
    try:
        return reader.header, [unframe(data) for data in reader.frames()]
    finally:
        reader.close()


def refused(path: Path) -> tuple[str, str]:
    with pytest.raises(SnapshotError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.reason, str(caught.value).removeprefix(f"{path}: ")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.snapshot"
    write(path)
    assert read(path) == (HEADER, list(OBJECTS.items()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.snapshot"]


def test_the_layout_is_that_of_its_version() -> None:
    """A change of what stands in the file needs another VERSION: then write down its octets here."""
    assert snapshotfile.MAGIC + snapshotfile.VERSION == b"kdns snapshot 1\n"
    one = Service(b"dev", b"web", (b"\x0a\x60\0\1",), (Port(b"http", b"tcp", 80),), False, None)
    part = EndpointSlice(b"dev", b"web-a", b"web", 4, b"\x0a\x01\0\1", b"h", b"p", (Port(b"", b"udp", 53),), "")
    assert frame("namespaces", [Namespace(b"dev")]).hex() == "0000000a009192c403646576c400"
    assert frame("services", [one]).hex() == (
        "00000024019196c403646576c40377656291c4040a6000019193c40468747470c40374637050c2c0"
    )
    assert frame("endpointslices", [part]).hex() == (
        "0000002e02919ac403646576c4057765622d61c40377656204c4040a010001c40168c401709193c400c40375647035a0c400"
    )
    assert frame("pods", [Pod(b"dev", b"p", (b"\x0a\x01\0\1",), b"{}")]).hex() == (
        "00000017039195c403646576c4017091c4040a010001c4027b7dc2"
    )


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def mutations(data: bytes) -> Iterator[bytes]:
    """Every bit turned, every end cut off, and something behind it."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    yield from (data[:length] for length in range(len(data)))
    yield data + b"\0"


def test_one_bit_one_octet_more_or_less_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.snapshot"
    seen: set[str] = set()
    for changed in mutations(write(path)):
        path.write_bytes(changed)
        seen.add(refused(path)[0])
    assert seen == {"damaged", "foreign", "version"}


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_anything_is_refused_without_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}.snapshot"
    path.write_bytes((snapshotfile.MAGIC + snapshotfile.VERSION if magic else b"") + data)
    refused(path)


def summed(*parts: bytes) -> bytes:
    """A file with the right sum and whatever in it."""
    import hashlib

    body = snapshotfile.MAGIC + snapshotfile.VERSION + b"".join(parts)
    return body + hashlib.blake2b(body, digest_size=32).digest()


def long(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


GOOD = long(msgspec.msgpack.encode(HEADER))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ("foreign", "empty")),
        (b"root:x:0:0:root:/root:/bin/sh\n", ("foreign", "not a snapshot of kdns")),
        (b"kdns snapshot 2\nwhatever", ("version", "of another version of kdns, or damaged")),
        (summed(), ("damaged", "damaged: a frame of over 33554432 octets")),
        (summed(long(b"\x93\1\2\3")), ("damaged", "damaged: its header makes no sense")),
        (summed(b"\xff\xff\xff\xff"), ("damaged", "damaged: a frame of over 33554432 octets")),
        (summed(b"\0\0\0\x09"), ("damaged", "damaged: its header makes no sense")),
        (summed(GOOD, b"\xff\xff\xff\xf0\0"), ("damaged", "damaged: a frame of over 33554432 octets")),
        (summed(GOOD, b"\0\0\0\xff\0"), ("damaged", "it changed while it was read")),
    ],
)
def test_what_is_said_about_it(tmp_path: Path, data: bytes, said: tuple[str, str]) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert refused(path) == said


@pytest.mark.parametrize(
    ("kind", "objects"),
    [
        (9, []),
        (0, [[b""]]),
        (0, [[b"x" * 64]]),
        (0, [["text"]]),
        (1, [[b"dev", b"web", [b"\1\2\3"]]]),
        (1, [[b"", b"web"]]),
        (1, [[b"dev", b"x" * 64]]),
        (1, [[b"x" * 64, b"web"]]),
        (1, [[b"\xff\xfe", b"web"]]),
        (1, [[b"dev", b"web", [], [[b"http", b"tcp", 65536]]]]),
        (1, [[b"dev", b"web", [], [], False, b"\x40abc"]]),
        (1, [[b"dev", b"web", [], [], False, b"\3abc"]]),
        (1, [[b"dev", b"web", [], [], False, b"\0behind"]]),
        (2, [[b"dev", b"a", b"web", 0, b""]]),
        (2, [[b"dev", b"a", b"web", 4, b"\1\2\3"]]),
        (2, [[b"dev", b"a", b"web", 4, b"\1\2\3\4", b"one\0two"]]),
        (2, [[b"dev", b"a", b"web", 4, b"\1\2\3\4", b"", b"x" * 64]]),
        (2, [[b"dev", b"a", b"web", 4, b"\1\2\3\4", b"", b"", [], "", b"one\0two"]]),
        (3, [[b"dev", b"p", [b"\1"]]]),
        (3, [[b"dev", b"\xff\xfe"]]),
        (3, {"a": 1}),
    ],
)
def test_objects_that_cannot_be(kind: int, objects: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unframe(bytes((kind,)) + msgspec.msgpack.encode(objects))


def test_no_frame_at_all() -> None:
    with pytest.raises(ValueError, match="no such kind"):
        unframe(b"")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader(str(tmp_path / "x"))


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path) == ("unreadable", "cannot be read: not a file")
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == ("unreadable", "cannot be read: not a file")
    assert refused(Path("/dev/zero")) == ("unreadable", "cannot be read: not a file")
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop")[0] == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(path)
    path.chmod(0)
    assert refused(path) == ("unreadable", "cannot be read: Permission denied")


def test_a_frame_too_large_to_read_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_FRAME", 100)
    path = tmp_path / "x"
    path.write_bytes(summed(GOOD, long(bytes(101)), bytes(4)))
    assert refused(path) == ("damaged", "damaged: a frame of over 100 octets")
    path.write_bytes(summed(long(msgspec.msgpack.encode(HEADER) + bytes(100)), bytes(4)))
    assert refused(path) == ("damaged", "damaged: a frame of over 100 octets")


def test_too_large_to_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(limits.SNAPSHOT_FILE + 33)
    assert refused(path) == ("large", f"larger than {limits.SNAPSHOT_FILE} octets")


# --- writing ---------------------------------------------------------------------------------------------------------


def left(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def test_too_large_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    old = write(path)
    monkeypatch.setattr(limits, "SNAPSHOT_FILE", len(old) - 32)
    assert write(path) == old
    monkeypatch.setattr(limits, "SNAPSHOT_FILE", len(old) - 33)
    pen = Pen(str(path))
    pen.begin(HEADER)
    with pytest.raises(SnapshotError, match="a snapshot of more than") as caught:
        for kind, found in OBJECTS.items():
            pen.write(frame(kind, found))
        pen.commit()
    assert caught.value.reason == "large"
    pen.close()
    assert path.read_bytes() == old and left(tmp_path) == {"x"}


def test_who_gives_up_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = write(path)
    pen = Pen(str(path))
    pen.begin(HEADER)
    assert left(tmp_path) == {"x", "x.new"}
    pen.close()
    pen.close()
    assert left(tmp_path) == {"x"} and path.read_bytes() == old


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (snapshotfile.MAGIC + b"much longer than what comes, " * 100, b"kdns sn", bytes(5000)):
        (tmp_path / "x.new").write_bytes(content)
        (tmp_path / "x.new").chmod(0o666)
        write(path)
        assert read(path)[0] == HEADER and left(tmp_path) == {"x"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_else_stands_beside_the_place_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.new").write_bytes(b"precious")
    (tmp_path / "y").write_bytes(snapshotfile.MAGIC)
    (tmp_path / "z.new").hardlink_to(tmp_path / "y")
    for name, text in (("x", "x.new is not a snapshot of kdns"), ("z", "z.new has another name, too")):
        with pytest.raises(SnapshotError, match=text) as caught:
            Pen(str(tmp_path / name))
        assert caught.value.reason == "foreign"
    assert (tmp_path / "x.new").read_bytes() == b"precious" and (tmp_path / "y").read_bytes() == snapshotfile.MAGIC


def test_two_with_one_place(tmp_path: Path) -> None:
    path = tmp_path / "x"
    first = Pen(str(path))
    with pytest.raises(SnapshotError, match="another process is writing it") as caught:
        Pen(str(path))
    assert caught.value.reason == "busy"
    first.begin(HEADER)
    first.commit()
    assert read(path) == (HEADER, [])
    write(path)


def test_who_comes_when_it_is_renamed_does_not_write_into_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour is opened, renamed to the snapshot by who had it, and only then locked."""
    path = tmp_path / "x"
    first = Pen(str(path))
    first.begin(HEADER)
    flock = snapshotfile.fcntl.flock

    def late(file: object, how: int) -> None:
        monkeypatch.undo()
        first.commit()
        flock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshotfile.fcntl, "flock", late)
    with pytest.raises(SnapshotError, match="another process is writing it"):
        Pen(str(path))
    assert read(path) == (HEADER, [])


@pytest.mark.parametrize("content", [b"root:x:0:0", b"kdns", b"\x7fELF" * 100])
def test_what_is_no_snapshot_is_never_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passwd"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="not a snapshot of kdns: it is left as it is") as caught:
        Pen(str(path))
    assert caught.value.reason == "foreign"
    assert path.read_bytes() == content and left(tmp_path) == {"passwd"}


def test_an_empty_file_and_a_damaged_snapshot_are_written_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"kdns snapshot 7\n...", b"kdns snapshot 1\n"):
        path.write_bytes(content)
        write(path)
        assert read(path)[0] == HEADER


def test_links_are_not_followed_where_it_writes(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link") as caught:
        Pen(str(tmp_path / "x"))
    assert caught.value.errno == errno.ELOOP
    assert victim.read_bytes() == b"precious"


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "y.new").mkdir()
    os.mkfifo(tmp_path / "z.new")
    for name, text in (
        ("dir", "not a file"),
        ("nowhere/x", "No such file or directory"),
        ("y", "Is a directory"),
        ("z", "No such device"),
    ):
        with pytest.raises(OSError, match=text):
            Pen(str(tmp_path / name))
    assert left(tmp_path) == {"dir", "y.new", "z.new"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = write(path)
    pen = Pen(str(path))
    pen.begin(HEADER)
    # The same file descriptor, but every write to it fails as on a full disk.
    assert pen._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, pen._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left") as caught:
        pen.commit()
    assert caught.value.errno == errno.ENOSPC
    pen.close()
    assert path.read_bytes() == old and left(tmp_path) == {"x"}


names = st.text(min_size=1, max_size=15).map(str.encode)
addresses = st.lists(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), max_size=3).map(tuple)
ports = st.lists(
    st.builds(Port, st.binary(max_size=15), st.sampled_from([b"tcp", b"udp"]), st.integers(0, 65535)), max_size=3
).map(tuple)


def slices(count: int) -> st.SearchStrategy[EndpointSlice]:
    parts = st.lists(st.sampled_from([b"", b"h", b"host-1"]), min_size=count, max_size=count)
    joined = parts.map(lambda found: b"\0".join(found) if any(found) else b"")
    packed = st.binary(min_size=4 * count, max_size=4 * count)
    return st.builds(EndpointSlice, names, names, names, st.just(4), packed, joined, joined, ports)


@settings(deadline=None)
@given(
    st.lists(st.builds(Namespace, names)),
    st.lists(st.builds(Service, names, names, addresses, ports, st.booleans(), st.sampled_from([None, b"", b"\1a\0"]))),
    st.lists(st.integers(1, 4).flatmap(slices)),
    st.lists(st.builds(Pod, names, names, addresses, st.binary(max_size=40))),
)
def test_every_object_comes_back(
    namespaces: list[Object], services: list[Object], slices: list[Object], pods: list[Object]
) -> None:
    found: list[Object]
    for kind, found in zip(KINDS, (namespaces, services, slices, pods), strict=True):
        assert unframe(frame(kind, found)[4:]) == (kind, found)

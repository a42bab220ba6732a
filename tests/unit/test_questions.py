"""Which packets are one question; that the packet cache finds what it keeps is tested with it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.questions import OPT_SIZE, form_of, storage_key

SCOPE = b"u1"
QUESTION = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\1x\0" + b"\0\1\0\1"
OPT = b"\0\0\x29\4\xd0" + bytes(6)
COOKIE = b"\0\x0a\0\x08"


def with_opt(options: bytes = b"", question: bytes = QUESTION) -> bytes:
    opt = OPT[:-2] + struct.pack(">H", len(options)) + options
    return question[:11] + b"\1" + question[12:] + opt


def named(label: bytes, packet: bytes = QUESTION) -> bytes:
    """The packet with another name of one label."""
    return packet[:12] + bytes((len(label),)) + label + packet[14:]


def test_letters_and_ids_make_no_difference() -> None:
    assert storage_key(SCOPE, QUESTION) == storage_key(SCOPE, b"\0\0" + named(b"X")[2:])
    assert storage_key(SCOPE, QUESTION) != storage_key(SCOPE, named(b"y"))
    assert storage_key(SCOPE, QUESTION) != storage_key(b"t1", QUESTION)


def test_cookies_make_no_difference_but_their_length_does() -> None:
    one, other = with_opt(COOKIE + b"12345678"), with_opt(COOKIE + b"abcdefgh")
    assert len(with_opt()) == len(QUESTION) + OPT_SIZE
    assert storage_key(SCOPE, one) == storage_key(SCOPE, other) is not None
    keys = {storage_key(SCOPE, packet) for packet in (QUESTION, with_opt(), one, with_opt(COOKIE[:3] + b"\0"))}
    assert len(keys) == 4 and None not in keys


def test_a_zero_octet_inside_a_label_is_never_stored() -> None:
    # The name "\0aaaa.": its zero octet could hide type and class from the key.
    packet = QUESTION[:12] + b"\5\0aaaa\0" + b"\0\1\0\1"
    assert storage_key(SCOPE, packet) is None
    # The same with what looks like an OPT record of padding inside the name.
    inside = b"\0\0\1\0\1" + b"\0\0\x29\4\xd0\0\0\0\0\0\x0b\0\x0c\0\7"
    packet = QUESTION[:11] + b"\1" + bytes((len(inside),)) + inside + b"\0\0\1\0\1"
    assert storage_key(SCOPE, packet) is None


@pytest.mark.parametrize("options", [None, b"", COOKIE + bytes(8)])
def test_a_form_is_what_questions_for_other_names_share(options: bytes | None) -> None:
    def make(packet: bytes) -> bytes:
        return packet if options is None else with_opt(options, packet)

    forms = {form_of(SCOPE, make(named(label))) for label in (b"x", b"longer", b"Y")}
    assert len(forms) == 1
    (form,) = forms
    assert form != form_of(b"t1", make(QUESTION))
    assert form != form_of(SCOPE, make(QUESTION[:-3] + b"\x1c\0\1"))


@given(st.binary(max_size=60))
def test_no_octets_make_it_raise(packet: bytes) -> None:
    storage_key(SCOPE, packet)

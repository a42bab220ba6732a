"""API objects as values: what is put together out of parts."""

from __future__ import annotations

from kdns.cluster.objects import Endpoint, EndpointSlice, endpoint_slice, pod_labels


def test_labels_that_make_no_sense_are_none() -> None:
    assert pod_labels(b'{"a": 1}') == pod_labels(b"[]") == pod_labels(b"{") == pod_labels(b"null") == {}


def test_endpoint_slice_leaves_out_other_widths_and_empty_columns() -> None:
    made = endpoint_slice(b"n", b"s", b"svc", [Endpoint(b"\1\2\3\4"), Endpoint(bytes(16), b"h")])
    assert made == EndpointSlice(b"n", b"s", b"svc", 4, b"\1\2\3\4")

"""Manifests out of text: what is an object, where it stands, and what is none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from kdns.cluster.documents import Document, read
from kdns.cluster.objects import ObjectError

HEAD = "apiVersion: v1\nkind: Service\n"


def contents(text: str) -> dict[str, Any]:
    (document,) = read(HEAD + text, "f.yaml")
    return document.content


def test_documents_know_their_line() -> None:
    text = "# a comment\n---\napiVersion: v1\nkind: Service\n---\n# nothing\n---\n---\n\n"
    text += "apiVersion: apps/v1\nkind: Thing\n"
    first, second = read(text, "dir/f.yaml")
    assert first == Document("dir/f.yaml:3", "v1", "Service", {"apiVersion": "v1", "kind": "Service"})
    assert (second.where, second.version, second.kind) == ("dir/f.yaml:10", "apps/v1", "Thing")


def test_no_documents_in_no_text() -> None:
    assert list(read("", "f.yaml")) == []
    assert list(read("---\n# only this\n---\n", "f.yaml")) == []


def test_lists_are_taken_apart() -> None:
    text = """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
- {apiVersion: v1, kind: Service}
---
apiVersion: v1
kind: ServiceList
items:
- metadata: {name: a}
- apiVersion: v2
  kind: Other
---
apiVersion: example.org/v1
kind: AllowList
spec: {}
"""
    found = [(one.where, one.version, one.kind) for one in read(text, "f")]
    assert found == [
        ("f:5", "v1", "Pod"),
        ("f:7", "v1", "Service"),
        ("f:12", "v1", "Service"),
        ("f:13", "v2", "Other"),
        ("f:16", "example.org/v1", "AllowList"),
    ]


def test_json_with_tabs() -> None:
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 'a"\\/ä', "labels": {}}, "n": [1, -2.5e3, None]}
    (document,) = read(json.dumps(manifest, indent="\t"), "f.json")
    assert document.content == manifest


def test_dates_and_sexagesimals_stay_text() -> None:
    found = contents(
        "a: 2026-01-01T00:00:00Z\nb: 2026-01-01\nc: 10:20\nd: 2001:10:20:30:40:50:1:2\n"
        "e: 012\nf: 12\ng: -3\nh: 0x1f\ni: 1.5\nj: yes\nk: null\nl: None\nm: '5'\nn: 0\n"
    )
    expected = ["2026-01-01T00:00:00Z", "2026-01-01", "10:20", "2001:10:20:30:40:50:1:2"]
    expected += [10, 12, -3, 31, 1.5, True, None, "None", "5", 0]
    assert list(found.values())[2:] == expected


def test_keys_are_text() -> None:
    assert contents("data: {8080: a, on: b}")["data"] == {"8080": "a", "on": "b"}


def test_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc:\n  x: 5\n  <<: *a\nd: {<<: [*a, *b], w: 0}\n"
    found = contents(text)
    assert found["c"] == {"x": 5, "y": 2}
    assert found["d"] == {"x": 1, "y": 2, "z": 4, "w": 0}


def test_a_bomb_of_merges_is_small() -> None:
    text = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 50)}], x{i}: 1}}\n" for i in range(1, 30)
    )
    assert len(contents(text)["a29"]) == 30


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind: [", r"f:\d: .*expected"),
        ("apiVersion: v1\nkind: x\nmetadata: {}\nmetadata: {}\n", "f:4: key 'metadata' stands here twice"),
        ("apiVersion: v1\nkind: x: y\n", "f:2: mapping values are not allowed"),
        ("---\n- a\n", "f:2: not an object but list"),
        ("---\n\nword\n", "f:3: not an object but str"),
        ("kind: x", "f:1: an object without apiVersion"),
        ("apiVersion: v1", "f:1: an object without kind"),
        ("apiVersion: v1\nkind: ''", "f:1: an object without kind"),
        ("apiVersion: 1\nkind: x", "f:1: an object without apiVersion"),
        ("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod},\n 3]", "f:1: not an object but int"),
        ("apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1", "f:4: an object without kind"),
        ("a: &a [*a]", "f:1: .*recursive"),
        ("a: &a {b: *a}", "f:1: .*recursive"),
        ("? [a]\n: b", "f:1: a key must be a plain word"),
        ("a: 1\n<<: 3", "f:2: only mappings can be merged"),
        ("a: !!map [1]", "f:1: not a mapping"),
        ("a: !!python/object/apply:os.system [x]", "f:1: could not determine a constructor"),
        ("a: !!timestamp x", "f:1: could not determine a constructor"),
        ("a: !!bool x", "f:1: 'x'"),
        ("a: !!float x", "f:1: could not convert"),
        ("a: " + "9" * 5000, "f:1: Exceeds the limit"),
        ("a: \x01", "f:1: unacceptable character"),
        ("a: \ud800", "f:1: .*surrogates"),
        ("a: " + "[" * 900 + "]" * 900, "f:1: nested too deeply"),
    ],
)
def test_what_is_no_object(text: str, reason: str) -> None:
    with pytest.raises(ObjectError, match=reason):
        list(read(text, "f"))


def test_yaml_is_loaded_only_here() -> None:
    command = "import sys, kdns.cluster.manifests; print('yaml' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "False"

"""Kubernetes manifests out of YAML and JSON text, each knowing where it stands.

Text is read as ``kubectl`` reads it: several documents in one file, ``List`` and ``ServiceList`` taken apart, a key
that stands twice in one mapping is an error.  Unlike plain YAML 1.1, dates and ``10:20`` stay text: a manifest means no
times by them.  Importing this module loads PyYAML (about 2 MiB): do so only when there are manifests to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml
from msgspec import Struct
from yaml import CSafeLoader, MappingNode, Node, ScalarNode, SequenceNode, YAMLError
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError

from kdns.cluster.objects import ObjectError


class Document(Struct, frozen=True):
    """One object as somebody wrote it."""

    where: str
    """``FILE:LINE`` of its first line."""
    version: str
    """``apiVersion``."""
    kind: str
    content: dict[str, Any]


def read(text: str, file: str) -> Iterator[Document]:
    """The objects in a file's text, in their order, each as soon as it is read.

    Raises ObjectError ``FILE:LINE: reason`` for text that is no YAML, and for documents that are no objects.
    """
    if file.endswith(".json"):
        # YAML is a superset of JSON but for tabs between tokens; within strings JSON has none.
        text = text.replace("\t", " ")
    try:
        for content, line in yaml.load_all(text, _Loader):
            if content is not None:
                yield from _documents(content, file, line)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ObjectError(f"{file}:{line}: {' '.join(filter(None, (error.problem, error.context)))}") from None
    except (YAMLError, ValueError, LookupError) as error:  # PyYAML: not UTF-8, `!!float x`, `!!bool x`
        raise ObjectError(f"{file}:1: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ObjectError(f"{file}:1: nested too deeply") from None


def _documents(content: object, file: str, line: int) -> Iterator[Document]:
    document = _document(content, f"{file}:{line}")
    items = document.content.get("items")
    if not (document.kind.endswith("List") and isinstance(items, list)):
        yield document
        return
    # Lists that come straight from the API do not repeat in each item what they are a list of.
    kind = document.kind.removesuffix("List")
    given = {"apiVersion": document.version, "kind": kind} if kind else {}
    for item in items:
        where = f"{file}:{item.line if isinstance(item, _Mapping) else line}"
        yield _document(given | item if isinstance(item, dict) else item, where)


def _document(content: object, where: str) -> Document:
    if not isinstance(content, dict):
        raise ObjectError(f"{where}: not an object but {type(content).__name__}")
    for key in ("apiVersion", "kind"):
        if not isinstance(content.get(key), str) or not content[key]:
            raise ObjectError(f"{where}: an object without {key}")
    return Document(where, content["apiVersion"], content["kind"], content)


# --- YAML ------------------------------------------------------------------------------------------------------------

_TAG: Final = "tag:yaml.org,2002:"


class _Mapping(dict[str, Any]):
    """A mapping that knows the line it begins in."""

    line = 0


class _Loader(CSafeLoader):
    """PyYAML's safe loader without types that JSON does not have; a document comes with the line that it begins in."""

    yaml_constructors = {  # noqa: RUF012 - PyYAML's own way
        tag: constructor
        for tag, constructor in CSafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "seq")
    }

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        letter: [(tag, pattern) for tag, pattern in resolvers if tag not in (_TAG + "timestamp", _TAG + "int")]
        for letter, resolvers in CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: Node) -> tuple[object, int]:
        """The document and its line; None for an empty one."""
        return super().construct_document(node), node.start_mark.line + 1


def _mapping(loader: _Loader, node: Node) -> _Mapping:
    """Build a mapping; a merge key ``<<`` fills in what the mapping itself does not say."""
    if not isinstance(node, MappingNode):
        raise ConstructorError(None, None, "not a mapping", node.start_mark)
    own, merged = _Mapping(), _Mapping()
    for key_node, value_node in node.value:
        value = loader.construct_object(value_node, deep=True)
        if key_node.tag == _TAG + "merge":
            for other in reversed(value) if isinstance(value_node, SequenceNode) else [value]:
                if not isinstance(other, dict):
                    raise ConstructorError(None, None, "only mappings can be merged", value_node.start_mark)
                merged.update(other)
            continue
        if not isinstance(key_node, ScalarNode):
            raise ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        if key_node.value in own:
            raise ConstructorError(None, None, f"key {key_node.value!r} stands here twice", key_node.start_mark)
        own[key_node.value] = value
    merged.update(own)
    merged.line = node.start_mark.line + 1
    return merged


_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_implicit_resolver(
    _TAG + "int", re.compile(r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$"), list("-+0123456789")
)

"""Manifests held against the API's schemas, offline: through the models of the official client."""

from __future__ import annotations

from typing import Any


def check(manifest: dict[str, Any]) -> None:
    """Unknown, missing and mistyped fields of an object of a ``v1`` API fail."""
    from kubernetes import client

    assert manifest["apiVersion"].rpartition("/")[2] == "v1"
    read = getattr(client, "V1" + manifest["kind"]).model_validate(manifest)
    # The models also take `app_protocol` for `appProtocol`; the API does not.
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest

"""One control plane for all tests in this folder; they are skipped where KUBEBUILDER_ASSETS is not set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.controlplane import ControlPlane


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane without Nodes."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets or shutil.which("kubectl") is None:
        pytest.skip("needs KUBEBUILDER_ASSETS, a directory with etcd and kube-apiserver, and kubectl")
    running = ControlPlane(Path(assets), tmp_path_factory.mktemp("control-plane"))
    try:
        running.start()
        yield running
    finally:
        running.stop()

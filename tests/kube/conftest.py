"""One control plane for all tests in this folder; they are skipped where KUBEBUILDER_ASSETS is not set."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.controlplane import ControlPlane, NotStarted, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for the cluster until another worker is done with it may wait for long.

    These tests come first: a worker with nothing left to do takes the last ones of another, and would start a second
    cluster for them after that of the first.
    """
    items.sort(key=lambda item: HERE not in item.path.parents)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="package")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running cluster.  Of the workers of a test run only one has it at a time: it needs the whole machine.

    What tests put into it is made as often as it is: once in a package, whatever the order of the tests.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not assets:
        pytest.skip("needs KUBEBUILDER_ASSETS, a directory with etcd, kube-apiserver and more")
    if lacking := missing(assets):
        pytest.skip(f"KUBEBUILDER_ASSETS={assets} has no {', '.join(lacking)}")
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH")
    with open(tmp_path_factory.getbasetemp().parent / "control-plane.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = ControlPlane(Path(assets), tmp_path_factory.mktemp("control-plane"))
        try:
            _start(running)
            yield running
        finally:
            running.stop()


def _start(control_plane: ControlPlane) -> None:
    try:
        control_plane.start()
    except (NotStarted, OSError, RuntimeError) as error:
        if "KDNS_KUBE_OPTIONAL" not in os.environ:
            raise
        pytest.skip(str(error))  # these programs are not ours: they shall not fail our tests

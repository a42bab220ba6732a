"""K9 and K10: tokens and certificates change while kdns runs, in a pod's own directory, as the kubelet changes them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.chaos import world
from tests.chaos.control import total
from tests.chaos.stage import Setting, Stage
from tests.chaos.verdict import NotHere, Run, Verdict
from tests.e2e.pod import impossible
from tests.fakeapi import FakeApi, service

_INTO_POD = """
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$0" /var/run/secrets/kubernetes.io/serviceaccount
exec "$@"
"""


class Account:
    """The directory of a service account, with its files behind a link that is swapped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "serviceaccount"
        self.directory.mkdir()
        self._count = 0

    def write(self, token: str, ca: str) -> None:
        """Put these in place in one step."""
        self._count += 1
        data = self.directory / f"..data_{self._count}"
        data.mkdir()
        (data / "token").write_text(token)
        (data / "ca.crt").write_text(ca)
        link = self.directory / "..data_tmp"
        link.symlink_to(data.name)
        os.replace(link, self.directory / "..data")
        for name in ("token", "ca.crt"):
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")

    def setting(self, api: FakeApi) -> Setting:
        """kdns as a pod with this account."""
        if why := impossible():
            raise NotHere(why)
        root = [] if os.geteuid() == 0 else ["--map-root-user"]
        place = [f"KUBERNETES_SERVICE_HOST={api.host}", f"KUBERNETES_SERVICE_PORT={api.port}"]
        within = ["env", *place, "unshare", "--mount", *root, "sh", "-ec", _INTO_POD, str(self.directory)]
        return Setting(access="# as the pod that it is", within=within)


async def tokens(run: Run) -> Verdict:
    """K9: the token is swapped over and over, and the old one refused at once."""
    verdict = Verdict(run)
    account = Account(run.directory)
    api = FakeApi(tls=run.directory, tokens={"token-0": None}, bookmark=5.0)
    ca = Path(api.ca_file).read_text()
    account.write("token-0", ca)
    async with Stage(run, api=api) as stage:
        stage.setting = account.setting(api)
        asked = world.questions(world.fill(api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        rotations = run.number(20, 3)
        slowest = 0.0
        for number in range(1, rotations + 1):
            account.write(f"token-{number}", ca)
            api.tokens = {f"token-{number}": None}
            await api.cut()  # every kind has to ask anew
            api.put("services", service("now", "apps", cluster_ip=f"10.97.0.{number}"))
            slowest = max(slowest, await server.becomes("now.apps.svc.cluster.local.", [f"10.97.0.{number}"], 60))
            await asyncio.sleep(run.seconds(1.5, 0.2))
        refused = total(await server.metrics(), "rest_client_requests_total", 'code="401"')
        verdict.note("rotations", rotations)
        verdict.at_most("401 per rotation and resource", refused / rotations / 4, 1.0)
        verdict.at_most("slowest change", slowest, 60.0, "s")
        verdict.clean(await load.window())
    return verdict


async def certificates(run: Run) -> Verdict:
    """K10: the server has a certificate of another CA; the right CA comes later."""
    verdict = Verdict(run)
    account = Account(run.directory)
    api = FakeApi(tls=run.directory, tokens={"token": None}, bookmark=5.0)
    account.write("token", Path(api.ca_file).read_text())
    async with Stage(run, api=api) as stage:
        stage.setting = account.setting(api)
        asked = world.questions(world.fill(api), run.seed)
        server = await stage.server()
        load = await stage.load(server, asked)
        slowest, insecure = 0.0, 0
        for number in range(1, run.number(3, 1) + 1):
            await api.refuse()
            api.new_certificate()
            asked = api.count()
            await api.accept()
            api.put("services", service("now", "apps", cluster_ip=f"10.97.1.{number}"))
            await asyncio.sleep(run.seconds(8, 2))
            insecure += api.count() - asked
            account.write("token", Path(api.ca_file).read_text())
            took = await server.becomes("now.apps.svc.cluster.local.", [f"10.97.1.{number}"], 60)
            slowest = max(slowest, took)
        verdict.at_most("requests under the wrong CA", insecure, 0)
        verdict.at_most("reconnected after the right CA came", slowest, 10.0, "s")
        verdict.clean(await load.window())
    return verdict

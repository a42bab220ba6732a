"""Run in a pod of its own (see `tests.e2e.pod`): what `host` and `dig` of a client pod print about the sample cluster.

``python -m tests.e2e.tools COMMAND…`` prints the commands' outputs as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.pod import Pod
from tests.fakeupstream import Asked
from tests.support import ROOT

UPSTREAM = "192.0.2.53"
SEARCH = "default.svc.cluster.local svc.cluster.local cluster.local"
GITHUB = ("github.com. 60 IN A 20.205.243.166",)
BAIDU = (
    "www.baidu.com. 300 IN CNAME www.a.shifen.com.",
    "www.a.shifen.com. 120 IN A 153.3.238.110",
    "www.a.shifen.com. 120 IN A 153.3.238.102",
)


def corefile(upstream: str) -> str:
    """kubeadm's, over the sample cluster."""
    return f"""
        . {{
            errors
            kubernetes cluster.local in-addr.arpa ip6.arpa {{
                manifests {ROOT / "examples" / "cluster"}
                pods verified
                fallthrough in-addr.arpa ip6.arpa
                ttl 30
            }}
            forward . {upstream}
            cache 30
            loop
            loadbalance
        }}
    """


async def internet(asked: Asked) -> None:
    """The upstream: two names that there are."""
    records = {"github.com.": GITHUB, "www.baidu.com.": BAIDU}.get(asked.name)
    if records is None or asked.type not in ("A", "AAAA"):
        asked.send(asked.reply(rcode="NOERROR" if records else "NXDOMAIN"))
    else:
        asked.send(asked.reply(*(record for record in records if asked.type == "A" or "CNAME" in record)))


async def run(commands: list[str]) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "Corefile").write_text(corefile(UPSTREAM))
        pod = Pod(
            coredns=Path(directory),
            resolv_conf=f"nameserver {Pod.ADDRESS}\nsearch {SEARCH}\noptions ndots:5\n",
            upstreams=(UPSTREAM,),
        )
    async with asyncio.timeout(60), pod:
        pod.upstreams[UPSTREAM].script = internet
        with await asyncio.to_thread(pod.kdns):
            return [await asyncio.to_thread(_output, command) for command in commands]


def _output(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1:]))))

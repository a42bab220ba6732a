"""The kubernetes plugin: its options, what it does with what `names` says, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kdns import interfaces, log, message, name
from kdns.build import build
from kdns.cluster.cluster import Cluster, Settings
from kdns.cluster.names import Options
from kdns.cluster.objects import Apply, Delete, Namespace, Object
from kdns.cluster.snapshotfile import Header, Pen, frame
from kdns.message import AA, FOREVER, NOERROR, NXDOMAIN, SERVFAIL, TC, Lease, Query, Reply
from kdns.plugin import Plugin, Process, Site
from kdns.plugins import kubernetes
from kdns.plugins.kubernetes import Kubernetes
from kdns.plugins.kubernetes.options import Reading
from tests import fakeapi
from tests.indextest import pod, service
from tests.plugintest import Clock, End, ask, at_once, new_site, record, refused, set_up, shown, uses
from tests.support import Lines, answers, free_port, http_get, parse, serving
from tests.support import ask as ask_server

NOWHERE = "endpoint http://127.0.0.1:1"
MANIFESTS = """\
apiVersion: v1
kind: Namespace
metadata: {name: dev}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: dev}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: dev}
spec: {type: ExternalName, externalName: www.Example.org}
---
apiVersion: v1
kind: Pod
metadata: {name: p-0, namespace: dev, labels: {app: web, tier: front}}
status: {phase: Running, podIP: 192.0.2.7, podIPs: [{ip: 192.0.2.7}]}
"""

IMPORTS = """\
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceImport
metadata: {name: db, namespace: dev}
spec: {type: Headless, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-east
  namespace: dev
  labels: {multicluster.kubernetes.io/service-name: db, multicluster.kubernetes.io/source-cluster: east}
addressType: IPv4
endpoints: [{addresses: [10.9.0.1]}]
ports: [{port: 80}]
"""


def apexes(text: str) -> set[str]:
    """The apexes of the denials that the Kubernetes of a Corefile gives."""
    process = Process()
    found = [plugin for plugin in build(process, parse(text), 53).plugins if isinstance(plugin, Kubernetes)]
    process.warehouse.keep_only(set())
    return {name.to_text(apex).removesuffix("cluster.local.") for plugin in found for apex in plugin._names._denials}


def test_what_stands_above_says_what_may_be_proven(directory: Path) -> None:
    def kept(above: str, options: str = "", zones: str = ".") -> set[str]:
        kubernetes = f"kubernetes cluster.local in-addr.arpa {{\n manifests {directory}\n {options}\n}}"
        return apexes(f"{zones} {{\n {above}\n {kubernetes}\n whoami\n}}\n")

    every = {"", "svc.", "pod."}
    kubeadm = "errors\n health\n ready\n prometheus localhost:0\n cache 30\n reload\n loadbalance\n loop\n"
    assert kept(kubeadm, "fallthrough in-addr.arpa") == every
    assert kept("log\n cancel\n bufsize\n metadata\n debug") == every
    for denied in ("hosts", "rewrite name a. b.", "template IN A x.cluster.local {\n rcode NXDOMAIN\n}"):
        assert kept(denied) == set()
    disabled = "cache {\n disable success {0}\n}\n", "cache {\n disable denial {0}\n}\n", "cache 30 {0}", "log {0}"
    for text in disabled:
        assert kept(text.replace("{0}", "cluster.local")) == every
        assert kept(text.replace("{0}", "svc.cluster.local")) == {"svc.", "pod."}
        assert kept(text.replace("{0}", "dev.pod.cluster.local")) == {"svc."}
    assert kept("prometheus localhost:0", zones=".:53 cluster.local:53") == every
    assert kept("prometheus localhost:0", zones="cluster.local:53 dev.svc.cluster.local:54") == {"pod."}
    assert kept("", zones="cluster.local:53 dev.svc.cluster.local:54") == every
    assert kept("", "fallthrough dev.svc.cluster.local") == {"pod."}
    assert kept("", "fallthrough cluster.local") == every


def block(*options: str, zones: str = "cluster.local in-addr.arpa") -> str:
    return f"kubernetes {zones} {{\n" + "\n".join(options) + "\n}"


def reading(*options: str, zones: str = "cluster.local") -> Reading:
    return Reading(uses(block(*options, zones=zones))[0], new_site("example.org."))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "world.yaml").write_text(MANIFESTS)
    return tmp_path


@pytest.fixture
def lines() -> Iterator[list[str]]:
    sink = Lines()
    before = log.set_sink(sink)
    yield sink.lines
    log.set_sink(before)


def plugin_of(directory: Path, *options: str, site: Site | None = None) -> Kubernetes:
    made = set_up(Kubernetes, block(f"manifests {directory}", "ttl 30", *options), site)
    assert isinstance(made, Kubernetes)
    return made


def cluster_of(plugin: Plugin) -> Cluster:
    assert isinstance(plugin, Kubernetes)
    return plugin._cluster


# --- options ---------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    found = reading(NOWHERE)
    assert found.options == Options((name.from_text("cluster.local."),))
    assert found.settings == Settings(endpoint="http://127.0.0.1:1")
    assert (found.fall, found.timeout, found.warnings) == ((), 5.0, [])


def test_zones_are_the_blocks_unless_given() -> None:
    assert reading(zones="").options.zones == (name.from_text("example.org."),)
    assert reading(zones="CLUSTER.local. 10.0.0.0/15").options.zones == (
        name.from_text("cluster.local."),
        name.from_text("0.10.in-addr.arpa."),
        name.from_text("1.10.in-addr.arpa."),
    )


def test_all_options(tmp_path: Path) -> None:
    files = [tmp_path / own for own in ("cert", "key", "ca", "config")]
    for file in files:
        file.write_text("")
    cert, key, ca, config = map(str, files)
    found = reading(
        "endpoint https://a https://b",
        f"tls {cert} {key} {ca}",
        f"kubeconfig {config} ctx",
        "apiserver_qps 2.5e1",
        "apiserver_burst 7",
        "apiserver_max_inflight 3",
        "namespaces Dev prod",
        "namespaces test",
        "labels env in (a, b),app=x",
        "pods verified",
        "endpoint_pod_names",
        "ttl 3600 and more",
        "noendpoints",
        "fallthrough in-addr.arpa 10.0.0.0/8",
        "ignore",
        "ignore empty_service",
        "startup_timeout 1m5s",
        "audit 1m",
    )
    assert found.settings == Settings(
        audit=60.0,
        kubeconfig=config,
        context="ctx",
        endpoint="https://a",
        tls=(cert, key, ca),
        qps=25.0,
        burst=7,
        max_inflight=3,
        labels="env in (a, b),app=x",
        endpoints=False,
        pods=True,
        pod_names=True,
    )
    assert found.options == Options(
        (name.from_text("cluster.local."),),
        ttl=3600,
        pods="verified",
        pod_names=True,
        namespaces=frozenset([b"\3dev", b"\4prod", b"\4test"]),
        ignore_empty=True,
    )
    assert found.fall == (name.IN_ADDR_ARPA, name.from_text("10.in-addr.arpa."))
    assert found.timeout == 65.0
    assert found.warnings == [
        "Multiple endpoints have been deprecated, only the first specified endpoint 'https://a' is used"
    ]


def test_a_snapshot() -> None:
    found = reading("snapshot state/cluster.snapshot", NOWHERE)
    assert (found.snapshot, found.max_age) == ("state/cluster.snapshot", 86400.0)
    found = reading("snapshot /var/lib/kdns/cluster {\n    max_age 1h30m\n}")
    assert (found.snapshot, found.max_age) == ("/var/lib/kdns/cluster", 5400.0)
    # Whether there is one does not make it another cluster.
    assert found.settings == reading().settings


def test_namespace_labels_and_fallthrough_everywhere() -> None:
    found = reading("namespace_labels env=dev", "fallthrough")
    assert found.settings.namespace_labels == "env=dev" and found.options.selected
    assert found.fall == (name.ROOT,)


def test_multicluster_and_zonal() -> None:
    found = reading(NOWHERE, "multicluster a.", "multicluster SET.local.", zones="cluster.local set.local")
    assert found.options.multicluster == (name.from_text("set.local."),) and found.settings.imports
    assert not found.options.zonal and not found.settings.zones
    # As in CoreDNS: without zones it says nothing.
    empty = reading(NOWHERE, "multicluster")
    assert empty.options.multicluster == () and not empty.settings.imports
    zonal = reading(NOWHERE, "zonal")
    assert zonal.options.zonal and zonal.settings.zones


@pytest.mark.parametrize("zone", ["in-addr.arpa", "ip6.arpa"])
def test_a_whole_reverse_zone_alone_is_taken(zone: str) -> None:
    assert reading(zones=zone).options.zones == (name.from_text(f"{zone}."),)


def test_labels_of_pods_are_kept_for_metadata_only() -> None:
    site = new_site()
    site.plugins["metadata"] = Kubernetes.__new__(Kubernetes)
    assert Reading(uses(block("pods verified"))[0], site).settings.pod_labels
    assert not Reading(uses(block("pods insecure"))[0], site).settings.pod_labels


COUNT = "Wrong argument count or unexpected line ending after "


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("pods foo", "wrong value for pods: foo,  must be one of: disabled, verified, insecure"),
        ("pods", f"{COUNT}'pods'"),
        ("pods insecure verified", f"{COUNT}'verified'"),
        ("endpoint_pod_names x", f"{COUNT}'x'"),
        ("namespaces", f"{COUNT}'namespaces'"),
        ("endpoint", f"{COUNT}'endpoint'"),
        ("tls a b", f"{COUNT}'b'"),
        ("tls /nowhere/a b c", "unable to read client-cert /nowhere/a"),
        ("labels", f"{COUNT}'labels'"),
        ("labels a in (b", "unable to parse label selector value: 'a in (b': "),
        ("namespace_labels a in (", "unable to parse namespace_label selector value: 'a in (': "),
        ("ttl", f"{COUNT}'ttl'"),
        ("ttl x", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("ttl 3601", "ttl must be in range [0, 3600]: 3601"),
        ("ttl -1", "ttl must be in range [0, 3600]: -1"),
        ("noendpoints x", f"{COUNT}'x'"),
        ("ignore foo", "unable to parse ignore value: 'foo'"),
        ("kubeconfig", f"{COUNT}'kubeconfig'"),
        ("kubeconfig a b c", f"{COUNT}'c'"),
        ("kubeconfig /nowhere", "stat /nowhere: no such file or directory"),
        ("startup_timeout", f"{COUNT}'startup_timeout'"),
        ("startup_timeout 5", 'failed to parse startup_timeout: 5, time: missing unit in duration "5"'),
        ("apiserver_qps x", 'invalid apiserver_qps "x": strconv.ParseFloat: parsing "x": invalid syntax'),
        ("apiserver_qps -1", "apiserver_qps must be >= 0"),
        ("apiserver_qps 1 2", f"{COUNT}'2'"),
        ("apiserver_burst 1.5", 'invalid apiserver_burst "1.5": strconv.Atoi: parsing "1.5": invalid syntax'),
        ("apiserver_burst -1", "apiserver_burst must be >= 0"),
        ("apiserver_max_inflight -2", "apiserver_max_inflight must be >= 0"),
        ("audit 1s 2s", f"{COUNT}'2s'"),
        ("audit on", 'time: invalid duration "on"'),
        ("audit 30", 'time: missing unit in duration "30"'),
        ("audit 999ms", "duration '999ms' must be at least 1s"),
        ("foo", "unknown property 'foo'"),
        ("resyncperiod 5m", "unknown property 'resyncperiod'"),
        ("namespaces a\nnamespace_labels b=c", "namespaces and namespace_labels cannot both be set"),
        (
            "multicluster a.b",
            "is not authoritative for the multicluster zone a.b. (authoritative zones: [cluster.local. in-addr.arpa.])",
        ),
        ("multicluster cluster.local x..y", ""),
        ("zonal x", f"{COUNT}'x'"),
        ("noendpoints\nzonal", "zonal requires the endpoint cache; remove noendpoints"),
        ("manifests", f"{COUNT}'manifests'"),
        ("manifests a\nendpoint http://b", "manifests cannot be used together with endpoint or kubeconfig"),
        ("fallthrough x..y", ""),
        ("snapshot", f"{COUNT}'snapshot'"),
        ("snapshot a b", f"{COUNT}'b'"),
        ("snapshot a/", "'a/' is not the name of a file"),
        ("snapshot a {\nage 1h\n}", "unknown property 'age'"),
        ("snapshot a {\nmax_age\n}", f"{COUNT}'max_age'"),
        ("snapshot a {\nmax_age 1\n}", 'time: missing unit in duration "1"'),
        ("snapshot a {\nmax_age 0s\n}", "duration '0s' must be at least 1s"),
        ("snapshot a\nmanifests b", "manifests need no snapshot: they are files themselves"),
        ("ttl 5 {\nx\n}", "Unexpected token '{', expecting argument"),
    ],
)
def test_errors(option: str, text: str) -> None:
    assert text in refused(Kubernetes, block(option))


def test_other_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert refused(Kubernetes, "kubernetes 10.in-addr.arpa") == "non-reverse zone name must be used"
    twice = f"{block(NOWHERE)}\n{block(NOWHERE)}"
    assert refused(Kubernetes, twice) == "this plugin can only be used once per Server Block"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Exception, match="unable to load in-cluster configuration"):
        set_up(Kubernetes, "kubernetes cluster.local")
    (tmp_path / "bad.yaml").write_text("kind: [")
    with pytest.raises(Exception, match=r"bad\.yaml:"):
        plugin_of(tmp_path)


def test_warnings_are_logged(lines: list[str]) -> None:
    set_up(Kubernetes, block("endpoint http://127.0.0.1:1 http://127.0.0.1:2"))
    assert lines[0].startswith("[WARNING] plugin/kubernetes: Multiple endpoints have been deprecated")


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_it_answers(directory: Path) -> None:
    end = End()
    found = at_once(plugin_of(directory), ask("WEB.dev.svc.cluster.local."), end)
    assert shown(found.answer) == ["WEB.dev.svc.cluster.local. 30 A 10.96.0.1"]
    assert found.lease.until == FOREVER and end.asked == []


async def test_what_is_in_none_of_its_zones_goes_on(directory: Path) -> None:
    end = End()
    query = ask("example.org.")
    assert at_once(plugin_of(directory), query, end).plugin == "end"
    assert end.asked == [query]


async def test_without_fallthrough_what_does_not_exist_does_not_exist(directory: Path) -> None:
    assert at_once(plugin_of(directory), ask("8.8.8.8.in-addr.arpa.", message.PTR), End()).rcode == NXDOMAIN


async def test_imports_out_of_manifests(directory: Path) -> None:
    (directory / "imports.yaml").write_text(IMPORTS)
    plugin = set_up(
        Kubernetes, block(f"manifests {directory}", "multicluster set.local", zones="cluster.local set.local")
    )
    assert shown(at_once(plugin, ask("db.dev.svc.set.local."), End()).answer) == ["db.dev.svc.set.local. 5 A 10.9.0.1"]
    found = at_once(plugin, ask("10-9-0-1.east.db.dev.svc.set.local."), End())
    assert (found.rcode, found.lease.until) == (NOERROR, FOREVER)
    assert at_once(plugin, ask("db.dev.svc.cluster.local."), End()).rcode == NXDOMAIN
    # Who does not ask for them has none.
    counts = cluster_of(plugin_of(directory)).index.counts()
    assert "serviceimports" not in counts and counts["endpointslices"] == 0


async def test_fallthrough(directory: Path) -> None:
    plugin, end = plugin_of(directory, "fallthrough in-addr.arpa"), End()
    assert at_once(plugin, ask("gone.dev.svc.cluster.local."), end).rcode == NXDOMAIN
    assert at_once(plugin, ask("1.0.96.10.in-addr.arpa.", message.A), end).rcode == NOERROR
    assert end.asked == []
    found = at_once(plugin, ask("8.8.8.8.in-addr.arpa.", message.PTR), end)
    # The answer from below goes when the address becomes one of the cluster's.
    assert (found.plugin, found.lease.until) == ("end", 5000.0)
    assert found.lease.facts == (b"fact", b"ip/\x08\x08\x08\x08")


async def test_nothing_falls_through_before_the_cluster_is_known() -> None:
    plugin, end = set_up(Kubernetes, block(NOWHERE, "fallthrough")), End()
    for qname in ("gone.dev.svc.cluster.local.", "what.cluster.local.", "8.8.8.8.in-addr.arpa."):
        found = at_once(plugin, ask(qname, message.PTR), end)
        assert (found.rcode, found.lease.until) == (SERVFAIL, 0.0)
        assert found.ede[0][0] == message.EDE_NOT_READY
    assert end.asked == []
    cluster_of(plugin).close()


# --- external names --------------------------------------------------------------------------------------------------


def chasing(directory: Path, reply: Reply, *options: str) -> tuple[Kubernetes, list[Query]]:
    process = Process(Clock())
    asked: list[Query] = []

    async def answer(query: Query) -> Reply:
        asked.append(query)
        return reply

    process.ask = answer
    return plugin_of(directory, *options, site=new_site(process=process)), asked


async def test_a_name_that_leads_back_to_itself_through_a_rewrite_is_given_up(directory: Path) -> None:
    """CoreDNS 1.14.7 dies of it: a Service that anybody may create, and one question."""
    text = (directory / "world.yaml").read_text().replace("www.Example.org", "ext.dev.svc.cluster.example")
    (directory / "world.yaml").write_text(text)
    rewrite = "rewrite name suffix .cluster.example .cluster.local answer auto"
    async with serving(f". {{\n{rewrite}\n{block(f'manifests {directory}')}\n}}") as server:
        reply = await ask_server(server.ports[0], "ext.dev.svc.cluster.local")
        assert set(answers(reply)) == {
            "ext.dev.svc.cluster.local. 5 IN CNAME ext.dev.svc.cluster.example.",
            "ext.dev.svc.cluster.example. 5 IN CNAME ext.dev.svc.cluster.example.",
        }
        assert (await ask_server(server.ports[0], "web.dev.svc.cluster.local")).rcode() == NOERROR


async def test_external_names_are_asked_of_the_whole_server(directory: Path) -> None:
    outside = Reply(
        answer=(record("www.Example.org. 60 A 192.0.2.80"),),
        flags=TC | message.RA,
        lease=Lease(700.0, (b"fact",), age=True),
    )
    plugin, asked = chasing(directory, outside)
    query = ask("Ext.dev.svc.cluster.local.", edns=message.Edns(1232, False))
    found = at_once(plugin, query, End())
    assert shown(found.answer) == [
        "Ext.dev.svc.cluster.local. 30 CNAME www.Example.org.",
        "www.Example.org. 60 A 192.0.2.80",
    ]
    assert (found.rcode, found.flags, found.plugin) == (NOERROR, AA | TC, "kubernetes")
    assert found.lease == Lease(700.0, (b"fact", b"svc/\3ext\3dev", b"ns/\3dev"), age=True)
    (chased,) = asked
    assert (chased.name, chased.spelling, chased.depth) == (
        name.from_text("www.example.org."),
        name.spell("www.Example.org."),
        1,
    )
    assert chased.edns == query.edns and chased.type == message.A


@pytest.mark.parametrize("rcode", [NXDOMAIN, SERVFAIL, message.REFUSED])
async def test_when_the_target_is_not_to_be_had_there_is_the_cname(directory: Path, rcode: int) -> None:
    plugin, _ = chasing(directory, Reply(rcode, ede=((message.EDE_NETWORK_ERROR, "x"),)))
    found = at_once(plugin, ask("ext.dev.svc.cluster.local."), End())
    assert shown(found.answer) == ["ext.dev.svc.cluster.local. 30 CNAME www.Example.org."]
    assert (found.rcode, found.lease.until) == (NOERROR, 0.0)
    assert found.ede == ((message.EDE_NETWORK_ERROR, "x"),)


async def test_when_the_server_says_nothing_there_is_nothing(directory: Path) -> None:
    plugin, _ = chasing(directory, Reply(drop=True))
    found = at_once(plugin, ask("ext.dev.svc.cluster.local."), End())
    assert (found.rcode, found.answer, found.drop) == (NOERROR, (), False)
    assert found.authority


# --- life ------------------------------------------------------------------------------------------------------------


async def test_equal_settings_share_a_cluster_and_outlive_a_reload(directory: Path) -> None:
    process = Process(Clock())
    first, again, other = (new_site(process=process) for _ in range(3))
    one = plugin_of(directory, "fallthrough", site=first)
    assert cluster_of(plugin_of(directory, "pods insecure", "namespaces dev", site=again)) is cluster_of(one)
    assert cluster_of(plugin_of(directory, "pods verified", site=other)) is not cluster_of(one)
    process.warehouse.keep_only(first.taken)
    assert cluster_of(plugin_of(directory, site=new_site(process=process))) is cluster_of(one)


async def test_changes_drop_facts(directory: Path) -> None:
    process = Process(Clock())
    dropped: list[bytes] = []
    plugin = plugin_of(directory, site=new_site(process=process))
    process.facts.subscribe(dropped.extend)
    before = process.facts.epoch
    cluster_of(plugin).apply(Apply("services", service("new.dev", "10.96.0.2")))
    assert set(dropped) == {b"svc/\3new\3dev", b"ip/\x0a\x60\0\2"} and process.facts.epoch == before + 1
    cluster_of(plugin).apply(Apply("services", service("new.dev", "10.96.0.2")))
    cluster_of(plugin).apply(Delete("services", b"dev", b"nothing"))
    assert process.facts.epoch == before + 1


async def test_a_start_with_manifests_waits_for_nothing(directory: Path, lines: list[str]) -> None:
    plugin = plugin_of(directory)
    await plugin.start()
    assert plugin.unready() == "" and plugin._waiting is None
    await plugin.stop()
    cluster_of(plugin).close()
    assert lines == []


async def test_a_start_without_the_api_server_answers_what_can_be_known(lines: list[str]) -> None:
    process = Process()
    plugin = set_up(Kubernetes, block(NOWHERE, "startup_timeout 700ms"), new_site(process=process))
    assert isinstance(plugin, Kubernetes)
    began = process.now()
    await plugin.start()
    assert process.now() - began < 0.6
    assert at_once(plugin, ask("example.org."), End()).plugin == "end"
    assert at_once(plugin, ask("dns-version.cluster.local.", message.TXT), End()).rcode == NOERROR
    # What depends on the cluster waits for it, as long as the start may take.
    found = await plugin.resolve(ask("web.dev.svc.cluster.local."), End())
    assert found.rcode == SERVFAIL and 0.5 < process.now() - began < 5
    assert at_once(plugin, ask("web.dev.svc.cluster.local."), End()).rcode == SERVFAIL
    for kind in ("namespaces", "services", "endpointslices"):
        assert f"{kind}: list: 127.0.0.1:1: " in plugin.unready()
    await plugin.stop()
    cluster_of(plugin).close()
    said = [line for line in lines if "starting server" in line]
    assert said == [
        "[INFO] plugin/kubernetes: waiting for Kubernetes API before starting server",
        "[WARNING] plugin/kubernetes: starting server with unsynced Kubernetes API",
    ]
    (reasons,) = [line for line in lines if "not known yet" in line]
    assert reasons == f"[WARNING] plugin/kubernetes: not known yet: {plugin.unready()}"


@contextlib.asynccontextmanager
async def api_server() -> AsyncIterator[fakeapi.FakeApi]:
    async with fakeapi.FakeApi() as api:
        api.put("namespaces", fakeapi.namespace("dev"))
        api.put("services", fakeapi.service("web", "dev", cluster_ip="10.96.0.1"))
        yield api


async def test_queries_wait_for_the_first_sync() -> None:
    async with api_server() as api:
        plugin = set_up(Kubernetes, block(f"endpoint {api.url}"), new_site(process=Process()))
        assert isinstance(plugin, Kubernetes)
        await plugin.start()
        found = await plugin.resolve(ask("web.dev.svc.cluster.local."), End())
        assert shown(found.answer) == ["web.dev.svc.cluster.local. 5 A 10.96.0.1"]
        assert plugin.unready() == ""
        await asyncio.sleep(0)
        assert plugin._waiting is None
        await plugin.stop()
        cluster_of(plugin).close()


async def test_a_reload_waits_for_a_new_cluster() -> None:
    async with api_server() as api:
        process = Process()
        process.plugins = [Kubernetes.__new__(Kubernetes)]
        plugin = set_up(Kubernetes, block(f"endpoint {api.url}"), new_site(process=process))
        await plugin.start()
        assert plugin.unready() == ""
        await plugin.stop()
        assert isinstance(plugin, Kubernetes)
        cluster_of(plugin).close()


async def test_a_stop_ends_the_waiting() -> None:
    plugin = set_up(Kubernetes, block(NOWHERE), new_site(process=Process()))
    assert isinstance(plugin, Kubernetes)
    await plugin.start()
    held = asyncio.create_task(plugin.resolve(ask("web.dev.svc.cluster.local."), End()))
    await asyncio.sleep(0)
    await plugin.stop()
    assert (await held).rcode == SERVFAIL
    cluster_of(plugin).close()


# --- snapshots -------------------------------------------------------------------------------------------------------


def warm(directory: Path, *options: str, process: Process | None = None) -> Kubernetes:
    """A plugin without an API server, with a snapshot that knows of one Service."""
    text = block(NOWHERE, f"snapshot {directory}/cluster.snapshot", "ttl 30", *options)
    made = set_up(Kubernetes, text, new_site(process=process or Process()))
    assert isinstance(made, Kubernetes)
    return made


def leave_snapshot(plugin: Kubernetes, *services: Object) -> None:
    """Write the snapshot that an earlier process would have left."""
    settings = plugin._cluster._settings
    assert plugin._snapshot is not None
    pen = Pen(plugin._snapshot.path)
    pen.begin(Header(settings.identity(), time.time() - 90, settings.contents))
    pen.write(frame("namespaces", [Namespace(b"dev")]))
    pen.write(frame("services", services))
    pen.commit()


async def test_names_of_a_snapshot(tmp_path: Path, lines: list[str]) -> None:
    plugin = warm(tmp_path, "fallthrough in-addr.arpa")
    leave_snapshot(plugin, service("web.dev", "10.96.0.1"), service("to.dev", externalName="web.dev.svc.cluster.local"))
    await plugin.start()
    end = End()
    found = at_once(plugin, ask("WEB.dev.svc.cluster.local."), end)
    assert shown(found.answer) == ["WEB.dev.svc.cluster.local. 5 A 10.96.0.1"]
    assert found.ede == ((message.EDE_STALE_ANSWER, "namespaces, services out of a snapshot"),)
    assert found.lease.until == FOREVER and b"known/services" in found.lease.facts
    assert len(at_once(plugin, ask("to.dev.svc.cluster.local."), end).answer) == 2
    held = plugin._waiting
    assert held is not None
    held.cancel()
    await asyncio.wait([held])
    for qname in ("gone.dev.svc.cluster.local.", "8.8.8.8.in-addr.arpa."):
        found = at_once(plugin, ask(qname, message.PTR), end)
        assert (found.rcode, found.ede[0][0]) == (SERVFAIL, message.EDE_NOT_READY)
    assert end.asked == []
    assert "services: from a snapshot of 20" in plugin.unready()
    await plugin.stop()
    cluster_of(plugin).close()
    assert [line for line in lines if "stand in" in line]


async def test_a_chased_name_of_a_snapshot(tmp_path: Path) -> None:
    process = Process(Clock())

    async def outside(query: Query) -> Reply:
        return Reply(answer=(record("www.Example.org. 60 A 192.0.2.80"),), lease=Lease(700.0))

    process.ask = outside
    plugin = warm(tmp_path, process=process)
    leave_snapshot(plugin, service("ext.dev", externalName="www.Example.org"))
    await plugin.start()
    found = at_once(plugin, ask("ext.dev.svc.cluster.local."), End())
    assert [record.ttl for record in found.answer] == [5, 5] and found.ede[0][0] == message.EDE_STALE_ANSWER
    assert b"known/services" in found.lease.facts
    await plugin.stop()
    cluster_of(plugin).close()


async def test_queries_wait_for_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "RESTORE", 0.0)
    plugin = warm(tmp_path)
    leave_snapshot(plugin, service("web.dev", "10.96.0.1"))
    began = time.monotonic()
    await plugin.start()
    found = await plugin.resolve(ask("web.dev.svc.cluster.local."), End())
    assert found.ede[0][0] == message.EDE_STALE_ANSWER and time.monotonic() - began < kubernetes.HOLD
    await plugin.stop()
    cluster_of(plugin).close()


async def test_the_end_leaves_a_snapshot(tmp_path: Path) -> None:
    async with api_server() as api:
        text = block(f"endpoint {api.url}", f"snapshot {tmp_path}/x")
        process = Process()
        site = new_site(process=process)
        plugin = set_up(Kubernetes, text, site)
        assert isinstance(plugin, Kubernetes)
        await plugin.start()
        await cluster_of(plugin).synced.wait()
        await plugin.drain()
        assert (tmp_path / "x").stat().st_size > 50
        await plugin.stop()
        process.warehouse.keep_only(set())


async def test_blocks_with_the_same_snapshot_share_it(tmp_path: Path) -> None:
    process = Process()
    one, other = (warm(tmp_path, process=process) for _ in range(2))
    assert one._snapshot is other._snapshot and one._cluster is other._cluster
    assert warm(tmp_path, "pods insecure", process=process)._snapshot is one._snapshot
    third = warm(tmp_path, "pods verified", process=process)
    assert third._snapshot is not one._snapshot
    process.warehouse.keep_only(set())


# --- metadata --------------------------------------------------------------------------------------------------------


def read(labels: dict[str, Callable[[], str]]) -> dict[str, str]:
    return {label.removeprefix("kubernetes/"): value() for label, value in labels.items()}


async def test_metadata_of_names(directory: Path) -> None:
    plugin = plugin_of(directory)
    empty = {"port-name": "", "protocol": "", "endpoint": "", "service": "", "namespace": "", "kind": ""}
    assert read(plugin.metadata(ask("cluster.local."))) == empty
    assert read(plugin.metadata(ask("_http._TCP.web.dev.svc.cluster.local."))) == {
        **empty,
        **{"port-name": "http", "protocol": "tcp", "service": "web", "namespace": "dev", "kind": "svc"},
    }
    assert read(plugin.metadata(ask("a.web.dev.svc.cluster.local.")))["endpoint"] == "a"
    assert read(plugin.metadata(ask("\\255.dev.svc.cluster.local.")))["service"] == "\\xff"
    assert read(plugin.metadata(ask("what.cluster.local."))) == {"parse-error": "invalid query name"}
    assert plugin.metadata(ask("example.org.")) == {}


async def test_metadata_of_zones_and_clusters(directory: Path) -> None:
    plugin = set_up(
        Kubernetes,
        block(f"manifests {directory}", "multicluster set.local", "zonal", zones="cluster.local set.local"),
    )
    assert isinstance(plugin, Kubernetes)
    here = read(plugin.metadata(ask("z.b.pin._zone.web.dev.svc.cluster.local.")))
    assert (here["zone"], here["service"], here["endpoint"]) == ("z.b", "web", "") and "cluster" not in here
    there = read(plugin.metadata(ask("e.c.web.dev.svc.set.local.")))
    assert (there["cluster"], there["endpoint"], there["port-name"], there["zone"]) == ("c", "e", "", "")


async def test_metadata_of_the_asker(directory: Path) -> None:
    site = new_site()
    site.plugins["metadata"] = Kubernetes.__new__(Kubernetes)
    plugin = plugin_of(directory, "pods verified", site=site)
    mine = read(plugin.metadata(ask("example.org.", peer=("192.0.2.7", 5))))
    assert mine == {
        "client-namespace": "dev",
        "client-pod-name": "p-0",
        "client-label/app": "web",
        "client-label/tier": "front",
    }
    assert plugin.metadata(ask("example.org.", peer=("192.0.2.8", 5))) == {}
    assert plugin.metadata(ask("example.org.", peer=("?", 5))) == {}
    assert read(plugin.metadata(ask("web.dev.svc.cluster.local.")))["client-pod-name"] == "p-0"
    cluster_of(plugin).apply(Apply("pods", pod("p-9.dev", "192.0.2.9")))
    assert "client-label/app" not in read(plugin.metadata(ask("example.org.", peer=("192.0.2.9", 5))))


# --- this server's own addresses -------------------------------------------------------------------------------------


def test_local_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    local = kubernetes._local_addresses
    assert local(("127.0.0.1", "192.0.2.1", "fe80::1%eth0", "::1")) == (
        bytes([192, 0, 2, 1]),
        name.pack_address("fe80::1"),
    )
    monkeypatch.setattr(interfaces, "addresses", lambda: iter([(1, bytes([127, 0, 0, 1])), (2, bytes([192, 0, 2, 2]))]))
    assert local(()) == (bytes([192, 0, 2, 2]),)

    def broken() -> object:
        raise OSError("no netlink")

    monkeypatch.setattr(interfaces, "addresses", broken)
    assert local(()) == ()


async def test_it_says_who_serves_the_zone(directory: Path) -> None:
    site = new_site()
    site.bind = ("192.0.2.53",)
    plugin = plugin_of(directory, site=site)
    await plugin.start()
    found = at_once(plugin, ask("cluster.local.", message.NS), End())
    assert shown(found.answer) == ["cluster.local. 30 NS ns.dns.cluster.local."]
    assert shown(found.additional) == ["ns.dns.cluster.local. 30 A 192.0.2.53"]
    await plugin.stop()
    cluster_of(plugin).close()


# --- in a server -----------------------------------------------------------------------------------------------------


async def test_a_service_is_answered_as_soon_as_it_is_there_and_gone_when_it_is_gone() -> None:
    async with api_server() as api:
        corefile = f". {{\ncache 30\n{block(f'endpoint {api.url}', 'ttl 30')}\n}}"
        async with serving(corefile) as server:
            port = server.ports[0]

            async def rcode() -> int:
                return int((await ask_server(port, "new.dev.svc.cluster.local.")).rcode())

            async def becomes(wanted: int) -> None:
                async with asyncio.timeout(5):
                    while await rcode() != wanted:
                        await asyncio.sleep(0.005)

            for _ in range(3):
                assert await rcode() == NXDOMAIN
                assert await rcode() == NXDOMAIN
                api.put("services", fakeapi.service("new", "dev", cluster_ip="10.96.0.7"))
                await becomes(NOERROR)
                found = await ask_server(port, "new.dev.svc.cluster.local.")
                assert answers(found) == ["new.dev.svc.cluster.local. 30 IN A 10.96.0.7"]
                api.delete("services", "new", "dev")
                await becomes(NXDOMAIN)


async def test_ready_says_that_there_is_no_crd_and_all_else_is_answered() -> None:
    port, ready = free_port(), free_port()
    async with fakeapi.FakeApi() as api:
        api.fault(resource="serviceimports", status=404)
        api.put("namespaces", fakeapi.namespace("dev"))
        api.put("services", fakeapi.service("web", "dev", cluster_ip="10.96.0.7"))
        options = f"endpoint {api.url}", "multicluster set.local", "startup_timeout 0s"
        text = block(*options, zones="cluster.local set.local")
        async with serving(f".:{port} {{\nready 127.0.0.1:{ready}\n{text}\n}}"):
            async with asyncio.timeout(10):
                while (body := (await http_get(ready, "/ready"))[1]).count("\n") > 1 or "404" not in body:
                    await asyncio.sleep(0.01)
            assert body.startswith("kubernetes\nkubernetes: serviceimports: list: 404")
            here = await ask_server(port, "web.dev.svc.cluster.local.")
            assert answers(here) == ["web.dev.svc.cluster.local. 5 IN A 10.96.0.7"]
            assert (await ask_server(port, "gone.dev.svc.cluster.local.")).rcode() == NXDOMAIN
            assert (await ask_server(port, "web.dev.svc.set.local.")).rcode() == SERVFAIL


async def test_ready_names_what_is_missing() -> None:
    port = free_port()
    async with serving(f". {{\nready 127.0.0.1:{port}\n{block(NOWHERE, 'startup_timeout 0s')}\n}}"):
        async with asyncio.timeout(5):
            while "refused" not in (await http_get(port, "/ready"))[1].lower():
                await asyncio.sleep(0.01)
        status, body = await http_get(port, "/ready")
    assert status == 503 and body.startswith("kubernetes\nkubernetes: namespaces: list: 127.0.0.1:1: ")

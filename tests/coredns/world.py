"""Random worlds for `test_parity`: cluster objects, their changes, the other servers around, and questions about them.

Everything follows from one seed.  Objects are such as an API server lets in, with a few that only a fake lets in;
names are drawn from small sets, so that they meet, vanish and come back.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kdns.message import type_number
from kdns.name import address_text, pack_address, reverse
from tests.fakeapi import FakeApi

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(resource, namespace, name)"""

NAMESPACES = ("default", "kube-system", "prod", "dev", "n1", "svc", "pod")
SERVICES = ("web", "db", "api", "cache", "s1", "a-b-c", "svc", "pod", "x", "http", "kube-dns", "ext", "ext2", "ext3")
PORTS = ("http", "https", "dns", "dns-tcp", "metrics", "p1", "tcp", "udp")
PROTOCOLS = ("TCP", "UDP", "SCTP")
HOSTNAMES = ("pg-0", "pg-1", "pg-2", "web", "h", "10-0-0-1", "a1b2")
LABELS: tuple[dict[str, str], ...] = ({}, {"env": "prod"}, {"env": "dev"}, {"env": "prod", "team": "a"}, {"team": "b"})

OUTSIDE = """
www.up.test alias.up.test chain.up.test nx.up.test fail.up.test empty.up.test big.up.test refused.up.test WWW.Up.Test
www.stub.test host.hosts.test one.zone.test cname.zone.test nx.zone.test t1.tmpl.test back.up.test dname.up.test
nosoa.up.test www.up.test.
""".split()
"""Names that other servers or other plugins know."""

RARE = """
HTTPS SVCB DS CAA NAPTR HINFO DNSKEY NSEC LOC DNAME TYPE65400 TYPE0 TYPE41 TYPE249 TYPE250 TYPE253 AXFR IXFR
""".split()
TYPES = [
    *("A AAAA A SRV A AAAA SRV".split() * 5),
    *("PTR CNAME TXT NS SOA MX ANY".split() * 3),
    *RARE,
]


ODD = (
    "cut", "header only", "qr", "opcode notify", "opcode update", "opcode status", "two questions", "no question",
    "edns 1", "answer counted", "garbage", "pointer", "two opts", "short", "additional",
)  # fmt: skip
"""Ways for a packet to be wrong."""


@dataclass(frozen=True)
class Question:
    """One packet and how to send it."""

    packet: bytes
    name: bytes = b"\0"
    """As spelled, in wire format."""
    type: str = ""
    klass: int = 1
    tcp: bool = False
    size: int = 0
    """Of the EDNS record; 0: none."""
    do: bool = False
    odd: str = ""
    """What is wrong with the packet."""

    def __str__(self) -> str:
        labels = []
        name = self.name
        while name[0]:
            labels.append(name[1 : 1 + name[0]].decode("latin-1"))
            name = name[1 + name[0] :]
        proto = "tcp" if self.tcp else "udp"
        edns = f" edns={self.size}{' do' if self.do else ''}" if self.size else ""
        klass = "" if self.klass == 1 else f" CLASS{self.klass}"
        return f"{'.'.join(labels)}. {self.type}{klass} {proto}{edns} {self.odd or self.packet[2:4].hex()}"


def wire(text: str) -> bytes:
    """A name as octets, whatever its labels are."""
    parts = [part.encode("latin-1") for part in text.rstrip(".").split(".") if part]
    return b"".join(b"%c%b" % (len(part), part) for part in parts) + b"\0"


class World:
    """The objects of one cluster, by key, and how they come to be."""

    def __init__(self, rng: random.Random, zones: tuple[str, ...], machine: tuple[str, ...] = ()) -> None:
        """``zones`` are asked about; ``machine``: addresses of this machine, which endpoints may have."""
        self.rng = rng
        self.objects: dict[Key, Object] = {}
        self.machine = machine
        self.zones = zones
        self.reverse = True
        self.asked: list[tuple[bytes, str]] = []
        self._marks = 0
        self._fill()

    # -- objects

    def _fill(self) -> None:
        rng = self.rng
        for name in NAMESPACES:
            if name == "default" or rng.random() < 0.8:
                self._put("namespaces", "", name, {"labels": {"env": "prod"} if name == "default" else {}})
        for _ in range(30):
            self._put_service()
        for _ in range(35):
            self._put_slice()
        for _ in range(12):
            self._put_pod()

    def load(self, api: FakeApi) -> None:
        """Give all of it to a fake API server."""
        for (resource, _, _), item in self.objects.items():
            api.put(resource, item)

    def change(self, api: FakeApi, times: int) -> None:
        """Change something, so many times."""
        for _ in range(times):
            for resource, key, item in self._one_change():
                if item is None:
                    api.delete(resource, key[2], key[1] or "default")
                else:
                    api.put(resource, item)

    def _one_change(self) -> Iterator[tuple[str, Key, Object | None]]:
        rng = self.rng
        before = dict(self.objects)
        what = rng.random()
        if what < 0.3:
            key = rng.choice([key for key in self.objects if key[2] != "default"])
            del self.objects[key]
        elif what < 0.55:
            self._put_service()
        elif what < 0.85:
            self._put_slice()
        elif what < 0.95:
            self._put_pod()
        else:
            self._put("namespaces", "", rng.choice(NAMESPACES[1:]), {})
        for key in before.keys() | self.objects.keys():
            if before.get(key) is not self.objects.get(key):
                yield key[0], key, self.objects.get(key)

    def _put(self, resource: str, namespace: str, name: str, item: Object) -> None:
        meta: Object = {"name": name, "labels": self.rng.choice(LABELS) | item.pop("labels", {})}
        if namespace:
            meta["namespace"] = namespace
        self.objects[resource, namespace, name] = {"metadata": meta, **item}

    def _ports(self, most: int = 3, number: str = "port") -> list[Object]:
        rng = self.rng
        count = rng.choice((0, 1, 1, 1, 2, most))
        ports: list[Object] = []
        for _ in range(count):
            name = rng.choice(PORTS) if count > 1 or rng.random() < 0.8 else ""
            port: Object = {
                "name": name,
                "protocol": rng.choice(PROTOCOLS),
                number: rng.choice((53, 80, 443, 8080, 65535)),
            }
            ports.append(port)
        return ports

    def address4(self) -> str:
        """One of not too many."""
        return f"10.0.{self.rng.randrange(2)}.{self.rng.randrange(1, 20)}"

    def address6(self) -> str:
        return self.rng.choice(
            ("fd00:10::{:x}", "fd00::{:x}:0:0:1", "2001:db8:{:x}::", "fd00:10:0:1:2:3:4:{:x}")
        ).format(self.rng.randrange(1, 9))

    def _put_service(self) -> None:
        rng = self.rng
        name, namespace = rng.choice(SERVICES), rng.choice((*NAMESPACES, "ghost"))
        kind = rng.choice(
            (
                "ClusterIP",
                "ClusterIP",
                "Dual",
                "Six",
                "Headless",
                "Headless",
                "NodePort",
                "LoadBalancer",
                "ExternalName",
            )
        )
        if name == "kube-dns" and kind == "ExternalName":
            kind = "ClusterIP"
        if name.startswith("ext"):
            kind = rng.choice(("ExternalName", "ExternalName", kind))
        spec: Object = {"type": kind if kind in ("NodePort", "LoadBalancer", "ExternalName") else "ClusterIP"}
        # No two Services have the same address, as in a true cluster.
        number = (SERVICES.index(name) * 8 + [*NAMESPACES, "ghost"].index(namespace)) * 3 + rng.randrange(1, 4)
        four, six = f"10.96.{number // 256}.{number % 256}", f"fd00:96::{number:x}"
        if kind == "ExternalName":
            spec["externalName"] = self._external(namespace)
        else:
            spec["clusterIPs"] = {
                "Headless": ["None"],
                "Dual": [four, six] if rng.random() < 0.7 else [six, four],
                "Six": [six],
            }.get(kind, [four])
            spec["clusterIP"] = spec["clusterIPs"][0]
            spec["ports"] = self._ports() if rng.random() < 0.97 else None
            if rng.random() < 0.1:
                # As before Kubernetes 1.20.
                del spec["clusterIPs"]
            spec["publishNotReadyAddresses"] = rng.random() < 0.2
            if rng.random() < 0.7:
                spec["selector"] = {"app": name}
            if rng.random() < 0.1:
                spec["externalIPs"] = [self.address4()]
        item: Object = {"spec": spec}
        if kind == "LoadBalancer":
            item["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "lb.example.net"}]}}
        self._put("services", namespace, name, item)

    def _external(self, namespace: str) -> str:
        rng = self.rng
        # Not into a zone that `rewrite` leads back from: what goes round in circles there kills CoreDNS.
        zone = rng.choice([zone for zone in self.zones if not zone.endswith(".example")])
        inside = f"{rng.choice(SERVICES)}.{rng.choice((namespace, *NAMESPACES))}.svc.{zone}"
        inside = rng.choice((inside, inside, inside.upper(), inside + ".", zone, f"ns.dns.{zone}"))
        near = (
            f"{rng.choice((*SERVICES, *SERVICES[-3:] * 3, 'nope', 'x.ext', '_http._tcp.web'))}.{namespace}.svc.{zone}"
        )
        odd = ("192.0.2.99", "2001:db8::99", "single", "a_b.up.test", "x" * 63 + ".up.test", f"10-0-0-1.dev.pod.{zone}")
        found = rng.choice((rng.choice(OUTSIDE[:8]), rng.choice(OUTSIDE), inside, near, rng.choice(odd)))
        # Without a dot too many where the zone is the root: CoreDNS could not write such a name.
        return found if zone else found.rstrip(".") or "single"

    def _put_slice(self) -> None:
        rng = self.rng
        services = [key for key in self.objects if key[0] == "services"]
        if services and rng.random() < 0.9:
            _, namespace, service = rng.choice(services)
        else:
            service, namespace = rng.choice(SERVICES), rng.choice(NAMESPACES)
        six = rng.random() < 0.3
        endpoints = [self._endpoint(six) for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 8)))]
        if rng.random() < 0.03:
            endpoints += [self._endpoint(six) for _ in range(60)]
        if not six and self.machine and service == "kube-dns" and rng.random() < 0.7:
            endpoints.append({"addresses": [rng.choice(self.machine)], "conditions": {"ready": True}})
        item: Object = {"addressType": "IPv6" if six else "IPv4", "endpoints": endpoints, "ports": self._ports()}
        if rng.random() < 0.998:
            item["labels"] = {"kubernetes.io/service-name": service}
        if rng.random() < 0.05:
            item["ports"] = None
        if rng.random() < 0.02:
            item["endpoints"] = None
        for port in item["ports"] or ():
            if rng.random() < 0.05:
                port["name"] = None
            if rng.random() < 0.05:
                port["port"] = None
        # A slice of a common name goes from one Service to another.
        own = f"{service}-{rng.choice('abc')}" if rng.random() < 0.9 else f"common-{rng.choice('ab')}"
        self._put("endpointslices", namespace, own, item)

    def _endpoint(self, six: bool) -> Object:
        rng = self.rng
        make = self.address6 if six else self.address4
        endpoint: Object = {"addresses": [make() for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 0)))]}
        conditions = rng.choice(
            (
                {"ready": True}, {"ready": True, "serving": True, "terminating": False}, {"ready": True},
                {"ready": False}, {"ready": False, "serving": True, "terminating": True}, {}, {"serving": False}, None,
            )
        )  # fmt: skip
        if conditions is not None:
            endpoint["conditions"] = conditions
        if rng.random() < 0.4:
            endpoint["hostname"] = rng.choice(HOSTNAMES)
        if rng.random() < 0.6:
            endpoint["targetRef"] = {"kind": "Pod", "name": rng.choice(("web-7d9f", "pg-0", "w" * 70, "p"))}
        if rng.random() < 0.5:
            endpoint["nodeName"] = "node-1"
            endpoint["zone"] = "z1"
        return endpoint

    def _put_pod(self) -> None:
        rng = self.rng
        ip = rng.choice((self.address4(), self.address4(), self.address6(), ""))
        status: Object = {
            "phase": rng.choice(("Running", "Running", "Running", "Pending", "Succeeded", "Failed", "Unknown"))
        }
        if ip:
            status |= {
                "podIP": ip,
                "podIPs": [{"ip": ip}, {"ip": self.address6()}] if rng.random() < 0.2 else [{"ip": ip}],
            }
        self._put("pods", rng.choice(NAMESPACES), f"pod-{rng.randrange(12)}", {"status": status, "spec": {}})
        if rng.random() < 0.1:
            self.objects[next(reversed(self.objects))]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def mark(self, api: FakeApi, labels: dict[str, str]) -> dict[str, str]:
        """Put a fresh object of each kind: resource → name below the zone that is there once it is seen."""
        self._marks += 1
        name, ip = f"mark-{self._marks}", f"10.77.{self._marks // 256}.{self._marks % 256}"
        meta = {"name": name, "namespace": "default", "labels": labels}
        api.put("namespaces", {"metadata": {"name": name, "labels": labels}})
        api.put(
            "services", {"metadata": meta, "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}}
        )
        cluster = {"name": f"c{name}", "namespace": "default", "labels": labels}
        api.put("services", {"metadata": cluster, "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}})
        api.put("pods", {"metadata": meta, "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
        meta = meta | {"labels": labels | {"kubernetes.io/service-name": name}}
        endpoints = [{"addresses": [ip], "conditions": {"ready": True}}]
        api.put("endpointslices", {"metadata": meta, "addressType": "IPv4", "endpoints": endpoints, "ports": []})
        return {
            "namespaces": f"{name}.svc",
            "services": f"c{name}.default.svc",
            "endpointslices": f"{name}.default.svc",
            "pods": f"{ip.replace('.', '-')}.default.pod",
        }

    # -- questions

    def question(self) -> Question:
        """The next one."""
        rng = self.rng
        if self.asked and rng.random() < 0.3:
            name, type = rng.choice(self.asked)
            if rng.random() < 0.3:
                type = rng.choice(TYPES)
        else:
            name, type = self._name(), rng.choice(TYPES)
            if b"\x04arpa\x00" in name.lower() and rng.random() < 0.6:
                type = "PTR"
            if name[1:2] == b"_" and rng.random() < 0.6:
                type = "SRV"
            self.asked.append((name, type))
            if len(self.asked) > 500:
                del self.asked[:250]
        if rng.random() < 0.1:
            name = _mixed(name, rng)
        return self._packet(name, type)

    def _name(self) -> bytes:
        rng = self.rng
        zone = rng.choice((*self.zones, self.zones[0]))
        kind = rng.random()
        if kind < 0.62:
            return _capped(self._cluster_name(zone))
        if kind < 0.74 and self.reverse:
            return _capped(self._reverse())
        if kind < 0.86:
            return _capped(self._outside())
        fixed = """
            {z} svc.{z} pod.{z} ns.dns.{z} dns.{z} dns-version.{z} x.dns-version.{z} x.ns.dns.{z} apex.dns.{z} nope.{z}
            a.b.c.d.e.f.{z} kube-dns.kube-system.svc.{z} foo.{z} a.foo.{z} *.{z} any.{z} local.{z} _zone.{z}
            hostmaster.{z} www.up.test.default.svc.{z} www.up.test.svc.{z} www.up.test.{z}
        """
        return _capped(rng.choice(fixed.format(z=zone).split()))

    def _cluster_name(self, zone: str) -> str:
        rng = self.rng
        if rng.random() < 0.7:
            keys = [key for key in self.objects if key[0] in ("services", "endpointslices")]
            resource, namespace, service = rng.choice(keys)
            if resource == "endpointslices":
                service = service.rpartition("-")[0]
        else:
            service, namespace = (
                rng.choice((*SERVICES, "nope", "*", "any")),
                rng.choice((*NAMESPACES, "ghost", "nope", "*")),
            )
        base = f"{service}.{namespace}.svc.{zone}"
        what = rng.random()
        if what < 0.35:
            return base
        if what < 0.5:
            return f"{self._endpoint_label(namespace, service)}.{base}"
        if what < 0.72:
            return self._port_name(namespace, service, base)
        if what < 0.78:
            return f"{namespace}.{rng.choice(('svc', 'pod'))}.{zone}"
        if what < 0.92:
            return self._pod_name(zone)
        odd = """
            x.y.{b} a.x.y.{b} a.b.c.d.{b} _{s}.{n}.svc.{z} {s}.{n}.foo.{z} {s}.{n}.{z} {s}.svc.{z} _http.{b} http.{b}
            ._tcp.{b} *.{b} *.*.{b} {l}.{l}.{l}.{b} {l}.{b} {s}-.{n}.svc.{z} \xff{s}.{n}.svc.{z} {s}.{n}.svc.x{z}
            a\\b.{b} web.{b} x.y.z.{n}.pod.{z}
        """.format(b=base, s=service, n=namespace, z=zone, l="l" * 63)
        return rng.choice((*odd.split(), f" {base}", f"\0.{base}", f"{'o.' * 100}{base}"))

    def _slices(self, namespace: str, service: str) -> list[Object]:
        return [
            item
            for (resource, space, _), item in self.objects.items()
            if resource == "endpointslices"
            and space == namespace
            and item["metadata"]["labels"].get("kubernetes.io/service-name") == service
        ]

    def _endpoint_label(self, namespace: str, service: str) -> str:
        rng = self.rng
        endpoints = [endpoint for item in self._slices(namespace, service) for endpoint in item["endpoints"] or ()]
        if not endpoints or rng.random() < 0.15:
            return rng.choice(
                (*HOSTNAMES, _dashed(self.address4()), _dashed(self.address6()), "web-7d9f", "p", "nope", "_x")
            )
        endpoint = rng.choice(endpoints)
        labels = [_dashed(address) for address in endpoint["addresses"] or [self.address4()]]
        labels.append(endpoint.get("hostname") or labels[0])
        labels.append(endpoint.get("targetRef", {}).get("name", labels[0])[:63])
        return rng.choice(labels)

    def _port_name(self, namespace: str, service: str, base: str) -> str:
        rng = self.rng
        item = self.objects.get(("services", namespace, service))
        ports = list((item or {}).get("spec", {}).get("ports") or ())
        for part in self._slices(namespace, service):
            ports += part["ports"] or ()
        name, protocol = rng.choice((*PORTS, "nope", "*")), rng.choice(PROTOCOLS)
        if ports and rng.random() < 0.8:
            port = rng.choice(ports)
            name, protocol = port["name"] or "", port["protocol"]
        if rng.random() < 0.1:
            protocol = rng.choice((*PROTOCOLS, "icmp", "*"))
        first, second = rng.choice((("_", "_"),) * 6 + (("", ""), ("_", ""), ("", "_"), ("__", "_")))
        return f"{first}{name}.{second}{protocol.lower()}.{base}"

    def _pod_name(self, zone: str) -> str:
        rng = self.rng
        pods = [(key, item) for key, item in self.objects.items() if key[0] == "pods" and "podIP" in item["status"]]
        namespace, ip = rng.choice((*NAMESPACES, "nope")), rng.choice((self.address4(), self.address6()))
        if pods and rng.random() < 0.7:
            (_, namespace, _), item = rng.choice(pods)
            ip = rng.choice(
                [item["status"]["podIP"], item["status"]["podIPs"][-1]["ip"] if "podIPs" in item["status"] else ip]
            )
            if rng.random() < 0.1:
                namespace = rng.choice(NAMESPACES)
        odd = "1-2-3 1-2-3-4-5 300-1-1-1 x --1 1-- 0-0-0-0 01-2-3-4 fe80--1 1-2-3-4-5-6-7-8 --ffff-1-2-3-4 a--b--c"
        label = _dashed(ip) if rng.random() < 0.6 else rng.choice((*odd.split(), ip.replace(":", "-")))
        prefix = rng.choice(("",) * 8 + ("x.", "a.b.", "a.b.c."))
        return f"{prefix}{label}.{namespace}.pod.{zone}"

    def _reverse(self) -> str:
        rng = self.rng
        ips = [
            ip
            for key, item in self.objects.items()
            if key[0] == "services"
            for ip in item["spec"].get("clusterIPs", ())
        ]
        ips = [ip for ip in ips if ip != "None"]
        for key, item in self.objects.items():
            if key[0] == "endpointslices":
                ips += [address for endpoint in item["endpoints"] or () for address in endpoint["addresses"]]
        ip = rng.choice(
            (rng.choice(ips or ["10.0.0.1"]),) * 6 + (self.address4(), self.address6(), "192.0.2.1", "203.0.113.7")
        )
        text = _text(reverse(pack_address(ip)))
        if rng.random() < 0.6:
            return text
        odd = """
            {cut} {cut2} x.{ip} 1.{ip} 10.in-addr.arpa in-addr.arpa arpa ip6.arpa 0.0.10.in-addr.arpa
            256.0.0.10.in-addr.arpa 01.0.0.10.in-addr.arpa {ip}x ns.dns.10.in-addr.arpa dns-version.0.10.in-addr.arpa
        """.format(ip=text, cut=text.split(".", 1)[1], cut2=text.split(".", 2)[2])
        return rng.choice(odd.split())

    def _outside(self) -> str:
        names = """
            {c}.up.test local nope test other.example x.www.up.test a.t2.tmpl.test tmpl.test two.hosts.test
            nx.hosts.test zone.test a.wild.zone.test host.sub.zone.test sub.zone.test mx.zone.test srv.zone.test
            old.rewrite.test web.rewrite.test old.exact.test 2.2.0.192.in-addr.arpa 99.2.0.192.in-addr.arpa txt.up.test
            mx.up.test long.up.test
        """.format(c=self.rng.choice("abcdefgh"))
        return self.rng.choice((*OUTSIDE, *OUTSIDE, *names.split(), ""))

    def _packet(self, name: bytes, type: str) -> Question:
        rng = self.rng
        flags = 0x0100 if rng.random() < 0.9 else 0
        flags |= rng.choice((0, 0, 0, 0, 0, 0, 0x20, 0x10, 0x30))
        if rng.random() < 0.02:
            flags |= rng.choice((0x40, 0x80, 0x200, 0x400, 0x8, 0x7F))
        klass = 1 if rng.random() < 0.99 else rng.choice((3, 4, 254, 255, 0))
        number = type_number(type)
        assert number is not None
        id = rng.randrange(65536)
        extra, size, do = b"", 0, False
        if rng.random() < 0.5 or type in ("AXFR", "IXFR"):
            size, do = rng.choice((512, 512, 1232, 1232, 1232, 4096, 4096, 100, 65535)), rng.random() < 0.3
            extra = _opt(size, do, self._options())
        tcp = rng.random() < (0.9 if type in ("AXFR", "IXFR") else 0.05)
        spoil = rng.random() < 0.01
        if spoil and len(name) < 240:
            # Of its own, so that a cache that takes the packet for a query does not tell later.
            name = b"\6%06d" % rng.randrange(10**6) + name
        packet = struct.pack("!6H", id, flags, 1, 0, 0, bool(extra)) + name + struct.pack("!HH", number, klass) + extra
        if spoil:
            return self._spoil(Question(packet, name, type, klass, tcp))
        return Question(packet, name, type, klass, tcp, size, do)

    def _options(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.8:
            return b""
        cookie, subnet = struct.pack("!HH", 10, 8) + b"12345678", struct.pack("!HHHBB", 8, 7, 1, 24, 0) + b"\xc0\0\2"
        unknown, nsid = struct.pack("!HH", 65001, 3) + b"abc", struct.pack("!HH", 3, 0)
        return rng.choice((cookie, subnet, unknown, nsid, cookie + unknown))

    def _spoil(self, question: Question) -> Question:
        rng, packet, name = self.rng, question.packet, question.name
        header, rest = packet[:12], packet[12:]
        counts = bytearray(header)
        odd = rng.choice(ODD)
        if odd == "cut":
            packet = packet[: rng.randrange(13, len(packet))]
        elif odd == "header only":
            packet = header
        elif odd == "qr":
            packet = packet[:2] + bytes((packet[2] | 0x80,)) + packet[3:]
        elif odd.startswith("opcode"):
            opcode = {"notify": 4, "update": 5, "status": 2}[odd.split()[1]]
            packet = packet[:2] + bytes((packet[2] | opcode << 3,)) + packet[3:]
        elif odd == "two questions":
            counts[5] = 2
            packet = bytes(counts[:10]) + b"\0\0" + rest[: len(name) + 4] * 2
        elif odd == "no question":
            packet = packet[:4] + bytes(8)
        elif odd == "edns 1":
            packet = packet[:10] + b"\0\1" + rest[: len(name) + 4] + b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 16, 0)
        elif odd == "answer counted":
            counts[7] = 1
            packet = bytes(counts) + rest
        elif odd == "garbage":
            packet += b"garbage"
        elif odd == "pointer":
            packet = header + b"\xc0\x0c" + rest[len(name) :]
        elif odd == "two opts":
            packet = packet[:10] + b"\0\2" + rest[: len(name) + 4] + _opt(1232, False, b"") * 2
        elif odd == "short":
            packet = packet[: rng.randrange(12)]
        elif odd == "additional":
            packet = (
                packet[:10] + b"\0\1" + rest[: len(name) + 4] + b"\0" + struct.pack("!HHIH", 1, 1, 60, 4) + b"\1\2\3\4"
            )
        return replace(question, packet=packet, odd=odd)


def _opt(size: int, do: bool, options: bytes) -> bytes:
    return b"\0" + struct.pack("!HHIH", 41, size, 0x8000 if do else 0, len(options)) + options


def _capped(text: str) -> bytes:
    """The name, cut on the left until it is one."""
    parts = [part[:63] for part in text.split(".") if part]
    name = wire(".".join(parts))
    while len(name) > 255:
        parts = parts[1:]
        name = wire(".".join(parts))
    return name


def _mixed(name: bytes, rng: random.Random) -> bytes:
    out, at = bytearray(name), 0
    while length := name[at]:
        for index in range(at + 1, at + 1 + length):
            if chr(name[index]).isascii() and chr(name[index]).isalpha() and rng.random() < 0.5:
                out[index] ^= 0x20
        at += 1 + length
    return bytes(out)


def _dashed(address: str) -> str:
    label = address_text(pack_address(address)).replace(".", "-").replace(":", "-")
    return label + "0" if label.endswith("-") else label


def _text(name: bytes) -> str:
    labels = []
    while name[0]:
        labels.append(name[1 : 1 + name[0]].decode())
        name = name[1 + name[0] :]
    return ".".join(labels)

"""How to reach an API server: files that change under us, kubeconfigs of every kind, and no way around verification."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
import yaml

from kdns.cluster import credentials
from kdns.cluster.credentials import Access, ApiError, Found, KubeconfigCredentials, endpoint, in_cluster
from tests.certificates import make_certificate
from tests.support import ROOT

ENVIRON = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
OFFICIAL = pytest.mark.skipif(not importlib.util.find_spec("kubernetes"), reason="no kubernetes package")


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """The directory of a service account."""
    certificate, _ = make_certificate(tmp_path)
    certificate.rename(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("first\n")
    return tmp_path


# --- service accounts ------------------------------------------------------------------------------------------------


async def test_service_account(account):
    access = await in_cluster(ENVIRON, str(account)).access()
    assert (access.host, access.port, access.path) == ("10.96.0.1", 443, "")
    assert access.authority == "10.96.0.1:443" and access.server_name == "10.96.0.1"
    assert access.authorization == "Bearer first" and access.tls is not None
    assert access.tls.verify_mode is ssl.CERT_REQUIRED and access.tls.check_hostname
    assert len(access.tls.get_ca_certs()) == 1, "the system's CAs are not trusted"


async def test_service_account_over_ipv6(account):
    access = await in_cluster(ENVIRON | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, str(account)).access()
    assert access.host == "fd00::1" and access.authority == "[fd00::1]:443"


def test_no_service_account(account):
    with pytest.raises(ApiError, match="unable to load in-cluster configuration"):
        in_cluster({}, str(account))
    (account / "token").unlink()
    with pytest.raises(ApiError, match="token: No such file"):
        in_cluster(ENVIRON, str(account))


async def test_nothing_is_read_twice_unless_it_changes(account):
    made = in_cluster(ENVIRON, str(account))
    assert await made.access() == await made.access()


async def test_a_rotated_token_is_in_force_with_the_next_request(account):
    made = in_cluster(ENVIRON, str(account))
    first = await made.access()
    # As the kubelet does it: another file behind the same name.
    (account / "new").write_text("other")
    os.replace(account / "new", account / "token")
    second = await made.access()
    assert second.authorization == "Bearer other" and second.tls is first.tls


async def test_a_refused_token_is_read_again_even_if_its_file_looks_the_same(account):
    made = in_cluster(ENVIRON, str(account))
    await made.access()
    stat = (account / "token").stat()
    (account / "token").write_text("other\n")
    os.utime(account / "token", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (await made.access()).authorization == "Bearer first"
    made.rejected()
    assert (await made.access()).authorization == "Bearer other"


async def test_a_rotated_ca_gives_another_context(account):
    made = in_cluster(ENVIRON, str(account))
    first = await made.access()
    os.replace(make_certificate(account, "other")[0], account / "ca.crt")
    second = await made.access()
    assert first.tls is not None and second.tls is not None and second.tls is not first.tls
    assert first.tls.get_ca_certs() != second.tls.get_ca_certs()


@pytest.mark.parametrize("text", ["", "\n", "garbage", "-----BEGIN CERTIFICATE-----\n", "ä"])
async def test_a_ca_that_makes_no_sense_is_never_replaced_by_another(account, text):
    made = in_cluster(ENVIRON, str(account))
    await made.access()
    (account / "ca.crt").write_text(text)
    for _ in range(2):
        with pytest.raises(ApiError, match="TLS: CA"):
            await made.access()


async def test_files_that_cannot_be_read(account):
    made = in_cluster(ENVIRON, str(account))
    (account / "ca.crt").unlink()
    with pytest.raises(ApiError, match=r"ca\.crt: No such file"):
        await made.access()
    make_certificate(account)[0].rename(account / "ca.crt")
    (account / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(ApiError, match="token: not text"):
        await made.access()
    (account / "token").unlink()
    (account / "token").mkdir()
    with pytest.raises(ApiError, match="token: Is a directory"):
        await made.access()


# --- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, host, port, path, secure",
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, "", False),
        ("127.0.0.1:8080", "127.0.0.1", 8080, "", False),
        ("http://api", "api", 80, "", False),
        ("https://api.example.org", "api.example.org", 443, "", True),
        ("https://api:6443/clusters/one/", "api", 6443, "/clusters/one", True),
        ("https://[fd00::1]:6443", "fd00::1", 6443, "", True),
    ],
)
async def test_endpoint(url, host, port, path, secure):
    access = await endpoint(url).access()
    assert (access.host, access.port, access.path, bool(access.tls)) == (host, port, path, secure)
    assert access.authorization == ""
    endpoint(url).rejected()


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "https://x:y", "http://[x", "https://x:99999"])
def test_senseless_endpoint(url):
    with pytest.raises(ApiError, match="is not the URL of an API server"):
        endpoint(url)


async def test_endpoint_with_certificates(tmp_path):
    cert, key = make_certificate(tmp_path)
    access = await endpoint("api:6443", str(cert), str(key), str(cert)).access()
    assert access.tls is not None and access.port == 6443, "https without being told"
    _, other = make_certificate(tmp_path, "other")
    with pytest.raises(ApiError, match=r"TLS: CA or .*localhost\.crt: KEY_VALUES_MISMATCH"):
        await endpoint("api:6443", str(cert), str(other), str(cert)).access()
    with pytest.raises(ApiError, match="No such file"):
        await endpoint("api:6443", str(tmp_path / "none"), str(key), str(cert)).access()


async def test_an_encrypted_key_is_an_error_and_no_prompt(tmp_path):
    from cryptography.hazmat.primitives import serialization

    cert, key = make_certificate(tmp_path)
    made = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ApiError, match="TLS"):
        await endpoint("https://api", str(cert), str(key), str(cert)).access()


# --- kubeconfigs: when they are asked for ----------------------------------------------------------------------------


class Child:
    """Stands in for the child process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.found: list[Found | ApiError] = []
        self.asked = 0
        self.now = 1000.0
        self.file = file
        file.write_text("x")
        monkeypatch.setattr(credentials, "_ask_child", self.ask)
        self.credentials = KubeconfigCredentials(str(file), "ctx", lambda: self.now)

    async def ask(self, file: str, context: str) -> Found:
        assert (file, context) == (str(self.file), "ctx")
        self.asked += 1
        await asyncio.sleep(0)
        found = self.found.pop(0)
        if isinstance(found, ApiError):
            raise found
        return found

    async def token(self) -> str:
        return (await self.credentials.access()).authorization


def found(token: str, expires_in: float | None = None) -> Found:
    return Found(host="http://api:1", authorization=token, expires_in=expires_in)


@pytest.fixture
def child(monkeypatch, tmp_path) -> Child:
    return Child(monkeypatch, tmp_path / "config")


async def test_a_kubeconfig_is_resolved_once_for_all(child):
    child.found = [found("a")]
    assert await asyncio.gather(*[child.token() for _ in range(4)]) == ["a"] * 4
    child.now += 10**6
    assert await child.token() == "a" and child.asked == 1


async def test_a_kubeconfig_is_resolved_again_when_its_file_changes(child):
    child.found = [found("a"), found("b")]
    assert await child.token() == "a"
    child.file.write_text("xy")
    assert await child.token() == "b"
    child.file.unlink()
    with pytest.raises(ApiError, match="config: No such file"):
        await child.token()


async def test_credentials_are_renewed_before_they_expire(child):
    child.found = [found("a", 900), found("b", 900)]
    assert await child.token() == "a"
    child.now += 839
    assert await child.token() == "a"
    child.now += 2
    assert await child.token() == "b" and child.asked == 2


async def test_good_credentials_are_kept_while_no_others_are_to_be_had(child):
    child.found = [found("a", 900), ApiError("login server away"), ApiError("login server away"), found("b", 900)]
    await child.token()
    child.now += 850
    assert await child.token() == "a" and child.asked == 2
    assert await child.token() == "a" and child.asked == 2, "not asked again at once"
    child.now += 60
    with pytest.raises(ApiError, match="config: login server away"):
        await child.token()
    child.now += credentials.CHILD_PAUSE
    assert await child.token() == "b"


async def test_refused_credentials_are_renewed_but_not_for_ever(child):
    child.found = [found("a"), found("b"), ApiError("no"), found("c")]
    assert await child.token() == "a"
    child.credentials.rejected()
    assert await child.token() == "a", "just made"
    child.now += credentials.CHILD_PAUSE
    assert await child.token() == "b"
    child.now += credentials.CHILD_PAUSE
    child.credentials.rejected()
    for _ in range(2):
        with pytest.raises(ApiError, match="no"):
            await child.token()
    assert child.asked == 3
    child.now += credentials.CHILD_PAUSE
    assert await child.token() == "c"


async def test_what_a_kubeconfig_says_about_tls(child, tmp_path):
    cert, key = make_certificate(tmp_path)
    child.found = [
        Found(
            host="https://10.0.0.1:6443/x",
            ca=cert.read_text(),
            cert=cert.read_text(),
            key=key.read_text(),
            server_name="localhost",
            proxy="http://proxy:3128",
        )
    ]
    access = await child.credentials.access()
    assert access.server_name == "localhost" and access.proxy == "http://proxy:3128" and access.path == "/x"
    assert access.tls is not None and access.tls.check_hostname and len(access.tls.get_ca_certs()) == 1


@pytest.mark.parametrize("ca", ["", "garbage"])
async def test_a_kubeconfig_with_a_senseless_ca_is_no_way_around_verification(child, ca):
    child.found = [Found(host="https://api", ca=ca)]
    with pytest.raises(ApiError, match="config: TLS: CA"):
        await child.credentials.access()


async def test_only_a_kubeconfig_that_says_so_goes_without_verification(child):
    child.found = [Found(host="https://api", verify=False), Found(host="https://api")]
    access = await child.credentials.access()
    assert access.tls is not None and access.tls.verify_mode is ssl.CERT_NONE
    child.file.write_text("other")
    access = await child.credentials.access()
    assert access.tls is not None and access.tls.verify_mode is ssl.CERT_REQUIRED


# --- kubeconfigs: the child process ----------------------------------------------------------------------------------


def in_place_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """The child process is this shell script."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


async def test_child_that_prints_what_it_found(monkeypatch, tmp_path):
    in_place_of_python(monkeypatch, tmp_path, """echo "{\\"host\\":\\"$*\\"}"; echo noise >&2""")
    assert (await credentials._ask_child("FILE", "CTX")).host == "-m kdns.cluster.kubeconfig FILE CTX"


@pytest.mark.parametrize("script", ["exit 1", "echo Traceback", "kill -9 $$"])
async def test_child_that_breaks_off(monkeypatch, tmp_path, script):
    in_place_of_python(monkeypatch, tmp_path, script)
    with pytest.raises(ApiError, match="broke off"):
        await credentials._ask_child("FILE", "")


async def test_child_that_takes_too_long(monkeypatch, tmp_path):
    in_place_of_python(monkeypatch, tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(credentials, "CHILD_TIME", 0.2)
    with pytest.raises(ApiError, match=r"no credentials after 0\.2 s"):
        await credentials._ask_child("FILE", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_without_the_official_client(monkeypatch, tmp_path):
    (tmp_path / "kubernetes").mkdir()
    (tmp_path / "kubernetes" / "__init__.py").write_text("raise ImportError('not here')")
    (tmp_path / "config").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with pytest.raises(ApiError, match=r"pip install 'kdns\[kubeconfig\]'"):
        await KubeconfigCredentials(str(tmp_path / "config")).access()


@pytest.fixture(scope="module")
def resolved(tmp_path_factory) -> dict[str, Found]:
    """What the official client makes of contexts of every kind, all in one child process."""
    directory = tmp_path_factory.mktemp("kubeconfig")
    cert, key = make_certificate(directory)
    (directory / "token").write_text("from a file")
    plugin = directory / "plugin"
    status = {"token": "from a plugin", "expirationTimestamp": "2099-01-01T00:00:00Z"}
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    plugin.write_text(f"#!/bin/sh\ncat <<'Y'\n{json.dumps(answer)}\nY\n")
    plugin.chmod(0o755)
    encoded = {name: base64.b64encode(file.read_bytes()).decode() for name, file in (("cert", cert), ("key", key))}
    execute = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}
    clusters = {
        "plain": {"server": "http://127.0.0.1:1"},
        "file": {"server": "https://127.0.0.1:2", "certificate-authority": cert.name},
        "data": {"server": "https://127.0.0.1:3", "certificate-authority-data": encoded["cert"]},
        "odd": {
            "server": "https://127.0.0.1:4",
            "insecure-skip-tls-verify": True,
            "tls-server-name": "localhost",
            "proxy-url": "http://proxy:3128",
        },
    }
    users = {
        "token": {"token": "straight"},
        "file": {"tokenFile": "token"},
        "basic": {"username": "u", "password": "p"},
        "cert": {"client-certificate-data": encoded["cert"], "client-key-data": encoded["key"]},
        "exec": {"exec": execute | {"command": "./plugin"}},
        "broken": {"exec": execute | {"command": "./missing"}},
        "unknown": {"auth-provider": {"name": "azure", "config": {}}},
        "nobody": {},
    }
    pairs = [("plain", "token"), ("file", "file"), ("data", "cert"), ("odd", "exec"), ("plain", "basic")]
    pairs += [("plain", "broken"), ("plain", "unknown"), ("plain", "nobody")]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "plain-token",
        "clusters": [{"name": name, "cluster": value} for name, value in clusters.items()],
        "users": [{"name": name, "user": value} for name, value in users.items()],
        "contexts": [
            {"name": f"{cluster}-{user}", "context": {"cluster": cluster, "user": user}} for cluster, user in pairs
        ],
    }
    (directory / "config").write_text(yaml.safe_dump(config))
    (directory / "garbage").write_text("{[")
    script = """
        import sys, msgspec
        from kdns.cluster.kubeconfig import resolve
        asked = [argument.split(":") for argument in sys.argv[1:]]
        sys.stdout.buffer.write(msgspec.json.encode([resolve(*pair) for pair in asked]))
    """
    asked = ["config:", *[f"config:{cluster}-{user}" for cluster, user in pairs], "config:none", "garbage:", "none:"]
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *asked],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    return dict(zip(asked, msgspec.json.decode(printed, type=list[Found]), strict=True))


@OFFICIAL
@pytest.mark.parametrize(
    "context, host, authorization",
    [
        ("", "http://127.0.0.1:1", "Bearer straight"),
        ("plain-token", "http://127.0.0.1:1", "Bearer straight"),
        ("file-file", "https://127.0.0.1:2", "Bearer from a file"),
        ("data-cert", "https://127.0.0.1:3", ""),
        ("odd-exec", "https://127.0.0.1:4", "Bearer from a plugin"),
        ("plain-basic", "http://127.0.0.1:1", "Basic dTpw"),
        ("plain-nobody", "http://127.0.0.1:1", ""),
    ],
)
def test_kubeconfigs(resolved, context, host, authorization):
    what = resolved[f"config:{context}"]
    assert (what.error, what.host, what.authorization) == ("", host, authorization)


@OFFICIAL
def test_kubeconfigs_and_tls(resolved):
    assert "BEGIN CERTIFICATE" in resolved["config:file-file"].ca and resolved["config:file-file"].verify
    data = resolved["config:data-cert"]
    assert data.ca == data.cert and "PRIVATE KEY" in data.key and data.verify
    odd = resolved["config:odd-exec"]
    assert (odd.ca, odd.verify, odd.server_name, odd.proxy) == (None, False, "localhost", "http://proxy:3128")


@OFFICIAL
def test_kubeconfigs_and_time(resolved):
    assert resolved["config:odd-exec"].expires_in > 10**9 and resolved["config:plain-token"].expires_in is None


@OFFICIAL
@pytest.mark.parametrize(
    "asked, error",
    [
        ("config:plain-broken", "missing"),
        ("config:plain-unknown", "its user has no credentials that the client knows"),
        ("config:none", "none"),
        ("garbage:", "garbage"),
        ("none:", "nothing in it"),
    ],
)
def test_kubeconfigs_that_lead_nowhere(resolved, asked, error):
    what = resolved[asked]
    assert what.host == "" and "\n" not in what.error
    assert error in what.error


@OFFICIAL
def test_the_serving_process_never_imports_the_official_client(tmp_path):
    config = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}]}
    config |= {"users": [{"name": "u", "user": {"token": "t"}}], "current-context": "x"}
    config |= {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    script = """
        import asyncio, sys
        import kdns.cluster.api
        from kdns.cluster.credentials import KubeconfigCredentials
        access = asyncio.run(KubeconfigCredentials(sys.argv[1]).access())
        assert access.authorization == "Bearer t", access
        assert not [name for name in sys.modules if name.split(".")[0] in ("kubernetes", "yaml", "urllib3")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), tmp_path / "config"], cwd=ROOT, check=True)


def test_access_is_a_value():
    assert Access("a", 1) == Access("a", 1)

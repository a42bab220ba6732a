"""How to reach an API server, and as whom: a pod's service account, an endpoint with certificates, a kubeconfig.

Each is a `Credentials`: asked for an `Access` before every request, it looks whether its files have changed since the
last one and reads them again if so; told that the API server refused it, it reads the token in any case.  So a rotated
token, client certificate or CA is in force with the next request, and there is no way from a broken file to a
connection without verification: what cannot be read is an `ApiError`, and the request is not made.

A kubeconfig may ask for anything, exec plugins and cloud logins included.  The official client can do it all, at
110 MiB; so it runs in a child process (`kdns.cluster.kubeconfig`) that prints what it found and ends.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from kdns import limits
from kdns.errors import KdnsError

FOREVER: Final = float("inf")
SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet puts a pod's ``token`` and ``ca.crt``."""
CHILD_TIME: Final = 60.0
"""Seconds that the child process gets to resolve a kubeconfig: an exec plugin may have to log in somewhere."""
CHILD_PAUSE: Final = 3.0
"""Seconds from one child process to the next at least, unless the file changes; each costs 0.3 s of CPU."""
EXPIRY_MARGIN: Final = 60.0
"""Seconds before they expire that credentials are asked for anew."""

T = TypeVar("T")


class ApiError(KdnsError):
    """The API server did not give what was asked, or cannot be asked; the message says why."""


class Access(Struct, frozen=True):
    """Where to connect to, and what to say there."""

    host: str
    port: int
    path: str = ""
    """Put before every path, for API servers behind a proxy's prefix."""
    tls: ssl.SSLContext | None = None
    """None: plain HTTP."""
    server_name: str = ""
    """The name that the server's certificate must have."""
    authorization: str = ""
    """The header of this name; empty: none."""
    proxy: str = ""
    """URL of an HTTP proxy to CONNECT through; empty: none."""

    @property
    def authority(self) -> str:
        """Host and port as URLs and metrics have them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Credentials(Protocol):
    """Where accesses come from."""

    async def access(self) -> Access:
        """What is in force now; raises ApiError."""

    def rejected(self) -> None:
        """The API server did not take them (401): get new ones."""


# --- from files ------------------------------------------------------------------------------------------------------


class _Cached(Generic[T]):
    """Something made out of files, and made again when one of them changes."""

    def __init__(self, paths: tuple[str, ...], make: Callable[[], T]) -> None:
        self._paths = paths
        self._make = make
        self._stamp: tuple[object, ...] | None = None
        self._made: T

    def get(self) -> T:
        """Raises ApiError when a file cannot be read or makes no sense."""
        stamp = tuple(_stamp(path) for path in self._paths)
        if stamp != self._stamp:
            self._stamp = None
            self._made = self._make()
            self._stamp = stamp
        return self._made

    def forget(self) -> None:
        self._stamp = None


def _stamp(path: str) -> tuple[int, int, int]:
    """What changes when a file is written or a link to it is swapped."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ApiError(f"{path}: {error.strerror}") from None
    return found.st_mtime_ns, found.st_ino, found.st_size


def read_text(path: str) -> str:
    """A small text file; raises ApiError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(limits.API_CREDENTIALS)
    except (OSError, ValueError) as error:
        raise ApiError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None


class FileCredentials:
    """An API server at a URL, with a token, a CA and a client certificate in files; an empty name: none."""

    def __init__(self, url: str, token: str = "", ca: str = "", cert: str = "", key: str = "") -> None:
        self._place, secure = _place(url, bool(ca or cert))
        files = tuple(filter(None, (ca, cert, key)))
        self._token = _Cached((token,), lambda: f"Bearer {read_text(token).strip()}") if token else None
        self._tls = _Cached(files, lambda: _context(read_text(ca) if ca else None, cert, key)) if secure else None

    @property
    def authority(self) -> str:
        """Host and port of the API server."""
        return self._place.authority

    async def access(self) -> Access:
        """See `Credentials`."""
        return msgspec.structs.replace(
            self._place,
            tls=self._tls.get() if self._tls else None,
            authorization=self._token.get() if self._token else "",
        )

    def rejected(self) -> None:
        """See `Credentials`."""
        if self._token is not None:
            self._token.forget()


def in_cluster(environ: Mapping[str, str] = os.environ, directory: str = SERVICE_ACCOUNT) -> FileCredentials:
    """The service account of the pod that we run in; raises ApiError when we run in none."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if not (host and port):
        raise ApiError(
            "unable to load in-cluster configuration, "
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
        )
    token, ca = os.path.join(directory, "token"), os.path.join(directory, "ca.crt")
    _stamp(token)
    return FileCredentials(f"https://{f'[{host}]' if ':' in host else host}:{port}", token, ca)


def endpoint(url: str, cert: str = "", key: str = "", ca: str = "") -> FileCredentials:
    """An API server at ``url``: ``https://host:port``, or without scheme (https when files are given, http otherwise).

    Raises ApiError for a URL that is none.  Without ``ca`` the system's CAs are trusted.
    """
    return FileCredentials(url, "", ca, cert, key)


def _place(url: str, secure: bool) -> tuple[Access, bool]:
    """The Access to a URL, still without secrets; and whether it is under TLS."""
    if "://" not in url:
        url = ("https://" if secure else "http://") + url
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ApiError(f"'{url}' is not the URL of an API server") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ApiError(f"'{url}' is not the URL of an API server")
    place = Access(parts.hostname, port, parts.path.rstrip("/"), server_name=parts.hostname)
    return place, parts.scheme == "https"


def _context(ca: str | None, cert: str, key: str, verify: bool = True) -> ssl.SSLContext:
    """TLS as client-go does it: any certificate of the CA is an anchor, and old CAs may lack modern extensions.

    ``ca`` is PEM text (None: the system's), ``cert`` and ``key`` are file names.
    """
    try:
        # Empty text would be taken for no CA at all, and the system's be trusted.  Comments may be in any language.
        text = None if ca is None else ca.encode("ascii", "ignore").decode() or " "
        context = ssl.create_default_context(cadata=text)
        context.set_alpn_protocols(["http/1.1"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if cert:
            context.load_cert_chain(cert, key, password="")  # an encrypted key is an error, not a prompt
    except (OSError, ValueError) as error:
        what = "CA" if not cert else f"CA or {cert}"
        raise ApiError(f"TLS: {what}: {getattr(error, 'reason', None) or error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# --- from a kubeconfig -----------------------------------------------------------------------------------------------


class Found(Struct):
    """What the child process prints, as JSON."""

    error: str = ""
    """Why nothing was found; empty: something was."""
    host: str = ""
    """URL."""
    ca: str | None = None
    """PEM text; None: the system's."""
    cert: str = ""
    """PEM text, as the next."""
    key: str = ""
    authorization: str = ""
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    expires_in: float | None = None
    """Seconds; None: not known."""


class KubeconfigCredentials:
    """What a kubeconfig leads to, asked of the official client in a child process when needed.

    That is: at first, when the file changes, before the credentials expire, and after a refusal.
    """

    def __init__(self, file: str, context: str = "", now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._context = context
        self._now = now
        self._access: Access | None = None
        self._trouble = ""  # why the last child found nothing
        self._stamp: tuple[int, int, int] | None = None
        self._expires = FOREVER
        self._refused = False
        self._asked = -FOREVER
        self._lock = asyncio.Lock()

    async def access(self) -> Access:
        """See `Credentials`.  Keeps to what it has as long as that is good and nothing else can be had."""
        async with self._lock:
            stamp = _stamp(self._file)
            now = self._now()
            wanted = self._access is None or self._refused or now > self._expires - EXPIRY_MARGIN
            if stamp != self._stamp or (wanted and now - self._asked >= CHILD_PAUSE):
                self._stamp, self._asked = stamp, now
                await self._renew()
            if self._access is None or (self._trouble and (self._refused or now > self._expires)):
                raise ApiError(self._trouble)
            return self._access

    def rejected(self) -> None:
        """See `Credentials`."""
        self._refused = True

    async def _renew(self) -> None:
        try:
            found = await _ask_child(self._file, self._context)
            self._access = _access(found)
        except ApiError as error:
            self._trouble = f"kubeconfig {self._file}: {error}"
            return
        self._trouble = ""
        self._refused = False
        self._expires = FOREVER if found.expires_in is None else self._now() + found.expires_in


async def _ask_child(file: str, context: str) -> Found:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kdns.cluster.kubeconfig", file, context),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(CHILD_TIME):
            printed, _ = await child.communicate()
        found = msgspec.json.decode(printed, type=Found)
    except TimeoutError:
        raise ApiError(f"no credentials after {CHILD_TIME:g} s") from None
    except msgspec.DecodeError:
        raise ApiError("the process that reads it broke off") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if found.error:
        raise ApiError(found.error)
    return found


def _access(found: Found) -> Access:
    place, secure = _place(found.host, True)
    context: ssl.SSLContext | None = None
    if secure:
        # OpenSSL takes a certificate and its key only from a file.
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(found.cert + "\n" + found.key)
            file.flush()
            context = _context(found.ca, file.name if found.cert else "", file.name, found.verify)
    return msgspec.structs.replace(
        place,
        tls=context,
        server_name=found.server_name or place.server_name,
        authorization=found.authorization,
        proxy=found.proxy,
    )

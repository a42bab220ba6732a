"""Resolves a kubeconfig with the official ``kubernetes`` client: ``python -m kdns.cluster.kubeconfig FILE [CONTEXT]``.

Run by `kdns.cluster.credentials` as a process of its own, which prints one JSON object (`credentials.Found`) and ends:
the client with all that it needs for OIDC, exec plugins and cloud logins never becomes part of the server.  The
kubeconfig is only read, never written.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import msgspec

from kdns.cluster.credentials import ApiError, Found, read_text


class _Complaints(logging.Handler):
    """Keeps what the client logs: it reports failed exec plugins there and nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def resolve(file: str, context: str) -> Found:
    """What the kubeconfig leads to in this context (empty: its current one); the reason in `Found.error` if nothing."""
    try:
        client: Any = import_module("kubernetes.client")
        config: Any = import_module("kubernetes.config.kube_config")
    except ImportError as error:
        return Found(error=f"the package 'kubernetes' is needed: pip install 'kdns[kubeconfig]' ({error})")
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        merged = config.KubeConfigMerger(file).config
        if merged is None:
            raise ApiError("there is nothing in it")
        loader = config.KubeConfigLoader(merged, active_context=context or None, config_base_path=None)
        configuration = client.Configuration()
        loader.load_and_set(configuration)
        return _found(loader, configuration, complaints.lines)
    except Exception as error:  # noqa: BLE001 - the client raises whatever its parsers raise; the answer must say it
        return Found(error=" ".join(f"{type(error).__name__}: {error}".split()))
    finally:
        logging.getLogger().removeHandler(complaints)


def _found(loader: Any, configuration: Any, complaints: list[str]) -> Found:
    authorization = configuration.api_key.get("BearerToken", "")
    if loader._user and not authorization and not configuration.cert_file:
        # The client would go on without a name.
        raise ApiError("; ".join(complaints) or "its user has no credentials that the client knows")
    expiry: datetime | None = getattr(loader, "expiry", None)
    return Found(
        host=configuration.host,
        ca=read_text(configuration.ssl_ca_cert) if configuration.ssl_ca_cert else None,
        cert=read_text(configuration.cert_file) if configuration.cert_file else "",
        key=read_text(configuration.key_file) if configuration.key_file else "",
        authorization=authorization,
        verify=bool(configuration.verify_ssl),
        server_name=configuration.tls_server_name or "",
        proxy=configuration.proxy or "",
        expires_in=(expiry - datetime.now(UTC)).total_seconds() if expiry else None,
    )


def main(arguments: list[str]) -> None:
    """Print what the kubeconfig of the command line leads to."""
    file, context = (*arguments, "", "")[:2]
    sys.stdout.buffer.write(msgspec.json.encode(resolve(file, context)))


if __name__ == "__main__":
    main(sys.argv[1:])

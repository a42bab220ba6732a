"""tls: the certificate of this server block's encrypted listeners (``tls://`` keys).

``tls CERT KEY [CA] { client_auth nocert|request|verify_if_given|require_and_verify; keylog FILE }``

CERT, KEY and CA are PEM files, relative to ``root``.  ``client_auth`` says whether clients must show a certificate that
CA has signed; ``request`` asks for none, because nothing here would look at it.  ``keylog`` writes the session keys to
FILE, for debugging.  Without CERT and KEY CoreDNS fetches certificates by ACME, and ``client_auth require`` takes any
certificate unverified: kdns has neither and says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

from kdns.corefile import Directive, only
from kdns.plugin import Plugin, Site

_VERIFY: Final = {
    "nocert": ssl.CERT_NONE,
    "request": ssl.CERT_NONE,
    "verify_if_given": ssl.CERT_OPTIONAL,
    "require_and_verify": ssl.CERT_REQUIRED,
}


class Tls(Plugin):
    """Configuration only: sets ``site.tls``."""

    name = "tls"
    handles = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``tls CERT KEY [CA] { … }``."""
        use = only(uses)
        if not use.args:
            raise use.error("certificates by ACME are not supported: name CERT and KEY")
        cert, key, *authority = [site.path(file) for file in use.between(2, 3)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(cert, key)
            if authority:
                context.load_verify_locations(authority[0])
            for option in use.options():
                if option.name == "client_auth":
                    context.verify_mode = _verify_mode(option)
                elif option.name == "keylog":
                    context.keylog_filename = site.path(option.arg())
                    site.logger(cls.name).warning(f'Writing TLS Key Log to "{context.keylog_filename}"')
                else:
                    raise option.error(f"unknown option '{option.name}'")
        except OSError as error:  # ssl.SSLError is one
            raise use.error(f"cannot use the certificate: {error}") from error
        site.tls = context
        return cls()


def _verify_mode(option: Directive) -> ssl.VerifyMode:
    kind = option.arg()
    if kind == "require":
        raise option.error("client_auth require takes any certificate unverified: use require_and_verify")
    if kind not in _VERIFY:
        raise option.error(f"unknown authentication type '{kind}'")
    return _VERIFY[kind]

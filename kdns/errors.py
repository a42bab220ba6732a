"""The tree of errors that kdns raises.

::

    KdnsError                what went wrong, in words for the operator
     ├─ BadName              text or labels that are no domain name            (name)
     ├─ BadRdata             record data that is not of its type               (rdata)
     ├─ FormatError          a packet that breaks the protocol                 (wire)
     ├─ BadZone              a master file that cannot be served               (zone)
     ├─ BadValue             a word of a Corefile that is not of its grammar   (values)
     ├─ CorefileError        a Corefile that cannot be served; knows file:line (corefile)
     ├─ ObjectError          an API object or manifest that makes no sense     (cluster.objects)
     ├─ SnapshotError        a snapshot that cannot be used or written         (cluster.snapshotfile)
     ├─ ApiError             the API server did not give what was asked        (cluster.credentials)
     ├─ UpstreamError        another server did not answer                     (upstream)
     └─ ListenError          an address that cannot be listened on             (listen.sockets)

Anything else that leaves a public function is a bug.  A query's failure is no exception but a `message.Reply`
whose ``error`` says why, so that every plugin above sees it and the client gets an rcode.
"""


class KdnsError(Exception):
    """The root: every error that kdns raises on purpose."""

"""Every bound of kdns in one table: what may grow, how far, and why there.

Whoever enforces a bound counts what it turned away (the metric named beside it) and has a test that reaches it.
Sizes are octets and times seconds unless the line says otherwise.
"""

from typing import Final

# --- packets ---------------------------------------------------------------------------------------------------------
UDP_REPLY: Final = 1232
"""A UDP answer, whatever the asker offers, unless ``bufsize`` says so (DNS flag day 2020: never fragmented)."""
UDP_QUERY: Final = 4096
"""A UDP query that is read whole; no honest query comes near."""
UDP_BATCH: Final = 64
"""Datagrams answered per wake-up of a socket, so that timers and other sockets get their turn."""
UDP_LAST_BATCHES: Final = 64
"""Batches still read from a socket that is about to be closed: more than its receive buffer holds."""
UDP_QUEUE: Final = 2**20
"""Octets of queries that all native threads of an address have handed to Python (a small query takes 160); more are let
go (kdns_udp_overflows_total): what had to wait behind them would come too late."""
UDP_QUEUE_LEAST: Final = 2**14
"""Of one native thread, however many there are."""
EDNS_OPTIONS: Final = 64
"""EDNS options read in one OPT; a query with more is a FORMERR."""
NAME_POINTERS: Final = 126
"""Compression pointers followed in one name (RFC 1035 names have at most 127 labels)."""

# --- questions -------------------------------------------------------------------------------------------------------
IN_FLIGHT: Final = 20_000
"""Queries that wait for I/O at once; above it the newest are answered SERVFAIL (kdns_shed_total)."""
CHASE_DEPTH: Final = 10
"""How often one query may make kdns ask itself (CNAME chases); beyond it SERVFAIL."""

# --- TCP and DoT -----------------------------------------------------------------------------------------------------
TCP_CONNECTIONS: Final = 10_000
"""Open connections of one listener (or a quarter of the file descriptors, if that is less); at the bound the longest
idle one is closed (kdns_tcp_connections_closed_total)."""
TCP_PIPELINE: Final = 128
"""Queries in work on one connection; then reading from it stops until one is answered."""
TCP_BATCH: Final = 64
"""Queries of one connection answered at once; then other sockets get their turn."""
TCP_IDLE: Final = 10.0
"""A connection without a whole query for so long is closed (CoreDNS: 10 s)."""
TCP_READ: Final = 5.0
"""A query that has begun to come must be whole within this time, however slowly its octets drip."""
TCP_ACCEPT_QUEUE: Final = 1024
"""Connections that the kernel holds for us until they are accepted."""
TCP_ACCEPT_PAUSE: Final = 0.1
"""Without file descriptors, accepting rests so long."""
TCP_HANDSHAKES: Final = 512
"""Accepted connections that are not open yet (TLS handshakes); then accepting waits."""
TLS_HANDSHAKE: Final = 5.0
"""A TLS handshake that takes longer is given up."""
TCP_WRITE: Final = 5.0
"""A client that does not take its answers for so long is cut off (CoreDNS: 5 s)."""
TCP_BACKLOG: Final = 65_536 * 2
"""Unsent answer octets of one connection; beyond it reading from it stops until they drain."""

# --- packet cache ----------------------------------------------------------------------------------------------------
PACKET_CACHE_ENTRIES: Final = 20_000
PACKET_CACHE_BYTES: Final = 16 * 2**20
"""Of all packet caches together; the least recently useful entries go first (kdns_packetcache_evictions_total)."""

# --- cache plugin ----------------------------------------------------------------------------------------------------
CACHE_BYTES: Final = 64 * 2**20
"""Memory of each half (success, denial) of one cache, beside its capacity (coredns_cache_evictions_total)."""
CACHE_REFRESHES: Final = 1_000
"""Background refreshes of one cache at once; others wait for another query (kdns_cache_refreshes_skipped_total)."""

WEIGHT_FILE: Final = 2**20
"""Octets of a weight file of ``loadbalance``; a larger one is refused as a whole."""

# --- log and metrics -------------------------------------------------------------------------------------------------
LOG_BUFFER: Final = 2**20
"""Log text that waits for a stalled reader; further lines are counted (kdns_log_dropped_total) and let go."""
LOG_LINE: Final = 8192
"""One log line."""
ERROR_LINES: Final = 100
"""Lines of the ``errors`` plugin in a second; the rest is summed up in one line (kdns_errors_suppressed_total)."""
SIZES_UNSETTLED: Final = 1_000
"""Different pairs of query and reply size counted for one set of labels before they are sorted into buckets."""
METRIC_SERIES: Final = 1_000
"""Label sets of one metric; further ones are counted together under the label value ``other``."""

# --- HTTP face -------------------------------------------------------------------------------------------------------
HTTP_CONNECTIONS: Final = 64
"""Open connections of one HTTP listener; one more, and the oldest is closed."""
HTTP_HEAD: Final = 8192
"""A request's head."""
HTTP_TIMEOUT: Final = 5.0
"""From the first octet of a request to the last of its answer (CoreDNS: 5 s)."""
HTTP_REST: Final = 3.0
"""After an answer that took one second to make, the next one waits so many: DNS has the loop meanwhile."""

# --- Corefile --------------------------------------------------------------------------------------------------------
COREFILE_SIZE: Final = 4 * 2**20
"""Characters of a Corefile with all that it imports."""
COREFILE_WORDS: Final = 120_000
"""Words of a Corefile with all that it imports, counted as often as they are imported; keeps parsing under 0.1 s."""
COREFILE_ZONES: Final = 10_000
"""Zones of all server blocks, or of one directive, with networks expanded (one line may give 128)."""
COREFILE_NESTING: Final = 16
"""Blocks within blocks of a Corefile; no plugin takes more than two."""
SNIPPET_IMPORTS: Final = 10_000
"""Imports of snippets in one Corefile (CoreDNS: 10,000)."""
FILE_IMPORTS: Final = 100_000
"""Imports of files in one Corefile (CoreDNS: 100,000)."""
REGEXP: Final = 10_000
"""Characters of one regular expression (CoreDNS: 10,000)."""

# --- other servers (what is turned away: kdns_upstream_rejects_total{reason}) ----------------------------------------
UPSTREAMS: Final = 15
"""Upstreams named by one ``forward`` (CoreDNS: 15)."""
UPSTREAM_ADDRESSES: Final = 60
"""Addresses that they stand for: a file or a host name gives several.  More are an error at start."""
UPSTREAM_TIME: Final = 5.0
"""A question is asked of upstreams for so long (CoreDNS: 5 s); later answers are nobody's."""
UPSTREAM_SENDS: Final = 12
"""Packets sent upstream for one question, whatever ``max_connect_attempts`` says."""
UPSTREAM_FLIGHTS: Final = 8192
"""Different questions that one ``forward`` has under way, unless ``max_concurrent`` says less (2 KiB each)."""
UPSTREAM_VARIANTS: Final = 4
"""Of these, questions that differ in flags and EDNS alone: each one under way helps who guesses IDs (RFC 5452)."""
UPSTREAM_CLIENT: Final = 10_000
"""Queries over UDP that one client address may have waiting for upstreams: who forges an address can hoard no more
to be sent there in one burst (DNSBomb).  Above `UPSTREAM_FLIGHTS`, so that a full zone gives way before its client
must."""
UPSTREAM_PORTS: Final = 256
"""UDP sockets, so source ports, that one upstream is asked from; each for `UPSTREAM_USES` questions."""
UPSTREAM_USES: Final = 8
UPSTREAM_SOCKETS: Final = 2048
"""UDP sockets to all upstreams (or a quarter of the file descriptors, if that is less); then ports are used
longer (kdns_upstream_full_total)."""
UPSTREAM_FORSAKEN: Final = 1024
"""IDs remembered of one port whose answers are not waited for any more; an answer to an older one is a stranger."""
UPSTREAM_STRANGERS: Final = 16
"""Datagrams with unknown IDs on one port; then the questions that wait there are asked again over TCP."""
UPSTREAM_STREAMS: Final = 16
"""TCP or TLS connections to one upstream."""
UPSTREAM_PIPELINE: Final = 512
"""Questions that wait on one of these connections; then a connection counts as full (kdns_upstream_full_total)."""
UPSTREAM_CONNECT: Final = 2.0
"""A connection that takes longer to open, TLS handshake included, is given up."""

# --- Kubernetes API (what is turned away: kdns_kubernetes_rejected_total{resource,reason}) ---------------------------
API_HEAD: Final = 64 * 2**10
"""The head of a response, and the head of a chunk."""
API_LINE: Final = 4 * 2**20
"""One line of a watch; etcd takes objects up to 1.5 MiB (``--max-request-bytes``)."""
API_PAGE: Final = 8 * 2**20
"""One page of a list; a larger one is asked for again with half as many objects."""
API_LIST: Final = 1_000_000
"""Objects of one list; Kubernetes is made for 150,000 Pods."""
API_STATUS: Final = 64 * 2**10
"""The body of a refusal that is read for its reason."""
API_RETRY_AFTER: Final = 300
"""The longest Retry-After that is waited for."""
API_CREDENTIALS: Final = 2**20
"""One token, certificate or key file, and what the child process says about a kubeconfig."""

# --- audits (a round that reaches one of these ends early: kdns_kubernetes_audits_total{result="overtaken"}) ----------
AUDIT_DOUBTS: Final = 4096
"""Differences noted in one round; it may be that their events are under way."""
AUDIT_DELETED: Final = 50_000
"""Deletions remembered during one round (9 octets each; they are forgotten in 15 ms)."""
AUDIT_TIME: Final = 900.0
"""All pages of one kind; 150,000 Pods at two pages a second take four to six minutes."""

# --- snapshots (what is turned away: kdns_kubernetes_snapshot_refusals_total{reason}) ---------------------------------
SNAPSHOT_FILE: Final = 128 * 2**20
"""One snapshot, to read or to write; 150,000 Pods with all their labels come to a third of it."""
SNAPSHOT_FRAME: Final = 32 * 2**20
"""A part of one that is read at once: 50 EndpointSlices of the largest kind come to a third of it."""
SNAPSHOT_TIME: Final = 5.0
"""Reading it for its checksum; a disk that takes longer is not waited for."""
SNAPSHOT_WRITE: Final = 300.0
"""Writing one; what takes longer waits for a disk that does not answer, and no other writing begins until it does."""

# --- manifests (an edit that goes beyond is refused: kdns_manifests_refused_total) -----------------------------------
MANIFEST_FILES: Final = 10_000
"""Files below a ``manifests`` directory."""
MANIFEST_FILE: Final = 64 * 2**20
"""One file."""
MANIFEST_BYTES: Final = 512 * 2**20
"""All files together; the objects in them are kept in a tenth of that."""

# --- life of the process ---------------------------------------------------------------------------------------------
GRACE: Final = 5.0
"""When the process ends, queries in work have so long to be answered (CoreDNS: 5 s)."""
RETIRE: Final = 6.0
"""After a reload, queries that began on the old chains have so long before what only those used is let go."""
RETIRING: Final = 4
"""Old configurations kept for their last queries at once; one more lets the oldest go."""
PLUGIN_START: Final = 30.0
"""A plugin that does not start within this time refuses its configuration."""

# --- zone files (one that goes beyond is refused: kdns_file_refused_total) -------------------------------------------
ZONE_TEXT: Final = 256 * 2**20
"""Characters of one zone's master files, with all that ``$INCLUDE`` and ``$GENERATE`` add."""
ZONE_RECORDS: Final = 1_000_000
"""Records of one zone."""
ZONE_ENTRY: Final = 2**20
"""Characters of one entry of a master file: the longest record data escaped throughout come to a quarter of it."""
ZONE_INCLUDES: Final = 7
"""``$INCLUDE`` within ``$INCLUDE`` (CoreDNS: 7)."""
ZONE_GENERATE: Final = 65_536
"""Records of one ``$GENERATE`` (CoreDNS: 65,536)."""

# --- hosts files -----------------------------------------------------------------------------------------------------
HOSTS_FILE: Final = 64 * 2**20
"""Octets of a hosts file; one that has grown beyond is not taken (a warning is logged)."""
HOSTS_PER_KEY: Final = 1024
"""Addresses of one name, and names of one address (kdns_hosts_skipped_entries): few more would fit into any answer."""

# --- templates -------------------------------------------------------------------------------------------------------
TEMPLATE_DEPTH: Final = 50
"""Blocks and parentheses in one another, in a template."""
TEMPLATE_ROUNDS: Final = 1_000
"""Rounds of all loops in one rendering of a template; then it fails (coredns_template_template_failures_total)."""

# --- expressions -----------------------------------------------------------------------------------------------------
EXPRESSION_WORDS: Final = 10_000
"""Words of one expression (expr-lang: 10,000 nodes)."""
EXPRESSION_DEPTH: Final = 200
"""Operands and operators in one another, in an expression; an operand counts for 4."""
EXPRESSION_ROUNDS: Final = 10_000
"""Items that all predicates of one expression look at, and items or characters that it can make at once."""

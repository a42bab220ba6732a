"""The scenarios with their figures, in one table.

Ids and figures are those of the project's catalogue of reliability tests (the column Must); whatever is otherwise has
its reason in ``adapted``.  Durations are those of `Run.scale` 1, at which all of them take about a quarter of an hour:
an outage is as long as it takes to reach the state that then lasts, not as long as an outage may be (``--scale 10``).
"""

from __future__ import annotations

from typing import Final

from tests.chaos import access, control, histories, hostile, kube, large, life, six
from tests.chaos.verdict import Scenario

SHORT: Final = "shorter: nothing changes any more once the pauses between tries have grown to their longest"
NOISE: Final = "p99 + 2 ms: the load runs on the processors of kdns, and two quiet windows differ by as much"

SCENARIOS: Final = (
    Scenario(
        "K1",
        "the API server is away at start: refused, blackholed, 401, 403, 500, slow lists",
        "forwarded names ≤ 1 s after exec; cluster names SERVFAIL with EDE 14; 0 NXDOMAIN, NODATA, leaks upstream;"
        " /ready 503; synced ≤ 2 s after it returns",
        control.absent_at_start,
        f"8 s each, {SHORT}; a question is lost after 3 s: kdns holds it for 1 s in the hope of an answer",
        quick=0.1,
    ),
    Scenario(
        "K1w",
        "the API server is away at start, and there is a snapshot",
        "all names that were there are answered with EDE 3, the first ≤ 1 s after exec",
        control.warm_start,
        "1 s instead of 300 ms: starting Python alone takes most of that here; the rest of K1's Reach",
        quick=0.1,
    ),
    Scenario(
        "K2",
        "the API server is killed",
        "0 SERVFAIL, lost, wrong; p99 ≤ 1.1 × before or after; reconnects ≤ 1/s per resource; converged ≤ 2 s after its"
        " return",
        control.killed,
        f"1 minute instead of 10, {SHORT}; {NOISE}",
        quick=0.08,
    ),
    Scenario(
        "K3",
        "watches are half-open, 100 Services change",
        "correct ≤ 15 s",
        control.half_open,
        quick=0.1,
    ),
    Scenario(
        "K4",
        "every watch that is resumed is answered 410; 10,000 Services, 100,000 endpoints",
        "1 to 7 lists per resource; 0 wrong; p99 ≤ 2 × before or 5 ms; peak memory ≤ 1.25 × steady",
        large.expired,
        "1 minute instead of 5, hence 7 lists instead of 10: the first ones come in quick succession; p99 may be 5 ms"
        " where twice the quiet one is less",
    ),
    Scenario(
        "K5",
        "etcd is restored from a backup; watches from the future are silent, errors, or gone",
        "correct ≤ 30 s, no restart",
        control.restored,
        quick=0.1,
    ),
    Scenario(
        "K5o",
        "the same, and the restored etcd has overtaken kdns's version before kdns is back",
        "correct ≤ 10 min",
        control.overtaken,
        "10 min, as K6: no version tells that anything happened, only a comparison finds it",
    ),
    Scenario(
        "K6",
        "one event in 20 is never told",
        "all repaired ≤ 10 min; repairs are counted; ≤ 1 whole list; audits cost ≤ 1 % of a processor",
        control.dropped,
        "20 s of events instead of 10 min: what counts is the time after the last; the audit's own lists, of metadata"
        " alone, come every 30 s instead of 10 min: names are right again in one minute instead of ten",
    ),
    Scenario(
        "K7",
        "random histories of objects",
        "0 mismatches in 100,000; an endpoint that moves between slices never vanishes",
        histories.histories,
        "100,000 instead of 1,000,000, which take 20 minutes (--scale 10)",
        quick=0.02,
    ),
    Scenario(
        "K9",
        "the token is swapped, the old one refused",
        "≤ 1 retry per rotation; nothing stale > 60 s; 0 lost, wrong",
        access.tokens,
        "20 rotations 1.5 s apart instead of an hour of them 10 s apart; every connection is cut each time",
        quick=0.1,
    ),
    Scenario(
        "K10",
        "the server's CA changes",
        "no request under the wrong CA; reconnected ≤ 10 s after the right one came; 0 lost, wrong",
        access.certificates,
        "3 times 8 s instead of once 5 min of a wrong CA",
        quick=0.1,
    ),
    Scenario(
        "K11",
        "8,000 Services, 150,000 endpoints in 170 MiB, the API server restarts without a history",
        "0 OOM; steady ≤ 85 MiB, peak ≤ 170 MiB; 0 lost, wrong",
        large.limited,
        "5 restarts instead of 20: kdns lists at growing intervals of up to a minute, and one list is like another",
    ),
    Scenario(
        "K12",
        "mutated watch lines, broken and endless lists, a huge object, 429",
        "0 crashes, wrong; memory ≤ + 32 MiB; Retry-After ± 20 %",
        hostile.nonsense,
        "100,000 lines instead of 1,000,000 (--scale 10); Retry-After is also exceeded by the time of one request",
    ),
    Scenario(
        "K13",
        "EndpointSlices never come",
        "what depends on them is SERVFAIL with EDE 14, all else is answered, nothing is NXDOMAIN",
        control.partial,
        "a question is lost after 3 s, as in K1",
        quick=0.1,
    ),
    Scenario(
        "K14",
        "1,000 changes a second",
        "change → answer p99 ≤ 100 ms, never > 1 s; p99 of others ≤ 1.5 × before or after",
        large.churn,
        f"30 s instead of 10 min; measured from the change, the API server's part included; {NOISE}",
        quick=0.05,
    ),
    Scenario(
        "L1",
        "rollouts of 2 replicas, senders learn of it up to 5 s late",
        "0 lost, wrong, SERVFAIL",
        life.rollout,
        "6 rollouts at 5,000 qps instead of 50 at 20,000; the load itself plays kube-proxy: no NAT rules are needed",
        quick=0.1,
    ),
    Scenario(
        "L2",
        "flows pinned to a server that ends",
        "0 lost until 2 s after the last; then it ends within 5 s",
        life.pinned,
        "15 s of pinned flows instead of 120 s",
    ),
    Scenario(
        "L3",
        "SIGKILL, and a start at once",
        "back ≤ 2 s with the right answers; 0 wrong; nothing lost beyond the time away, nor wrong or unknown after it",
        life.killed,
        "kdns has one process, no workers: a supervisor's restart takes what Python takes to start, not 50 ms",
    ),
    Scenario(
        "L5",
        "10,000 mutated Corefiles, and bad reloads of a server",
        "parser ≤ 100 ms each; the old configuration serves; each failure counted and logged once; 0 lost, wrong",
        life.bad_corefiles,
        "all are parsed, but only 70 are reloaded: that is what the rest is about",
        quick=0.05,
    ),
    Scenario(
        "L6",
        "reloads while the API server is down",
        "0 SERVFAIL, lost, wrong",
        life.reload_without_api,
        quick=0.1,
    ),
    Scenario(
        "L7",
        "a ConfigMap is swapped, missing, half written, huge",
        "1 reload per content change, else none; picked up ≤ 10 s; 0 lost, wrong",
        life.config_maps,
        "with `reload 2s`; missing for 5 s instead of 60; comments may count as content or not; no EACCES, since root"
        " reads everything",
        quick=0.1,
    ),
    Scenario(
        "L10",
        "CPU quota of 100m and 200m",
        "p99 ≤ 100 ms at 80 % of what it bears; /health ≤ 1 s at ten times that; 0 wrong",
        life.starved,
        "10 s instead of 10 min of overload; cluster names are not favoured: what is too much is lost in the socket's"
        " buffer, before anybody could read what it asks for",
    ),
    Scenario(
        "L13",
        "a network namespace without IPv4",
        "as K2, and a reload: 0 lost, wrong",
        six.six_only,
        "K2 with 20 s of outage and a reload instead of the full suite, whose sockets are IPv4's",
        quick=0.2,
    ),
    Scenario(
        "R1",
        "a real API server and etcd are killed and restored",
        "0 lost, wrong, SERVFAIL; the next change seen ≤ 5 s",
        kube.outages,
    ),
    Scenario(
        "R3",
        "1,000 nodes of kwok, rolling update of 5,000 Pods",
        "0 lost, no failure of a name that exists; right ≤ 5 s after its end",
        kube.replaced,
    ),
)

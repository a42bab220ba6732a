from tests.chaos import access, control, hostile, large
from tests.chaos.verdict import Scenario

SCENARIOS = (
    Scenario("K1", "absent", "x", control.absent_at_start, quick=0.1),
    Scenario("K1w", "warm", "x", control.warm_start, quick=0.1),
    Scenario("K2", "killed", "x", control.killed, quick=0.1),
    Scenario("K3", "half", "x", control.half_open, quick=0.1),
    Scenario("K4", "half", "x", large.expired, quick=0.1),
    Scenario("K5", "restored", "x", control.restored, quick=0.1),
    Scenario("K5o", "overtaken", "x", control.overtaken, quick=0.1),
    Scenario("K6", "dropped", "x", control.dropped, quick=0.1),
    Scenario("K9", "dropped", "x", access.tokens, quick=0.1),
    Scenario("K10", "dropped", "x", access.certificates, quick=0.1),
    Scenario("K11", "dropped", "x", large.limited, quick=0.1),
    Scenario("K12", "dropped", "x", hostile.nonsense, quick=0.1),
    Scenario("K13", "partial", "x", control.partial, quick=0.1),
    Scenario("K14", "partial", "x", large.churn, quick=0.1),
)

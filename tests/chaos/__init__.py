"""Faults of the control plane and of processes, against a real kdns under a load whose every answer is checked.

``make chaos`` (``python -m tests.chaos``) plays all scenarios of `catalogue` and prints a table; ``make test`` plays
some of them in short (`test_scenarios`), where times do not count because others use the machine.

A scenario is a coroutine function: it takes a `verdict.Run`, sets a `stage.Stage` up, breaks something, and returns a
`verdict.Verdict` with what it measured.  One that lacks something of the machine raises
`NotHere`.

==============  =======================================================================================
`catalogue`     the table: id, what happens, figure, what is otherwise than in the catalogue of tests and why
`control`       K1 … K6, K13: the API server is away, silent, goes back, loses events
`access`        K9, K10: tokens and certificates
`large`         K4, K11, K14: many objects
`hostile`       K12: nonsense
`histories`     K7: random histories of objects against the specification
`life`          L1 … L10: rollouts, kills, reloads, too little CPU
`six`           L13: no IPv4
`kube`          R1, R3: a real control plane
`stage`         the processes and ports that a scenario needs; `load` is the one that asks, `world` what it asks
==============  =======================================================================================
"""

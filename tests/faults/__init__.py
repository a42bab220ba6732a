"""The whole server under faults and attacks: real processes, real sockets."""

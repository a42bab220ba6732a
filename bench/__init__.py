"""What a query costs, beside every other DNS server on this machine: see README.md."""

"""kdns: a Kubernetes cluster DNS server with CoreDNS's Corefile, plugins and metrics."""

__version__ = "0.1.0"

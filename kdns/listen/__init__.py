"""Listeners: they only frame bytes; `kdns.handler` does the rest."""

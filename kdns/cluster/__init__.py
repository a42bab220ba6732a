"""Cluster objects: where they come from, how they are kept, and what DNS says about them."""

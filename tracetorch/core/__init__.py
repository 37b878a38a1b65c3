"""Shared ground of all rooms: module walk, snapshots, hooks, checks, files, and the version."""

__version__ = "0.10.0"

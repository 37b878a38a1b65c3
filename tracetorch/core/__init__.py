"""Shared ground of all rooms: module walk, snapshots, hooks, checks, optional packages, files."""

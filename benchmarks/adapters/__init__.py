"""Adapters of the measured libraries; a worker imports the one of its own library."""

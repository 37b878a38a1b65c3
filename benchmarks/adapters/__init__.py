"""One module per library, each an ``Adapter``; imported by the worker that has the library."""

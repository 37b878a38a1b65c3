"""Complete scripts on real data: ``python -m examples.row_digits --help``. See README.md."""

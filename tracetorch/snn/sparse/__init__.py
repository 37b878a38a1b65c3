"""Products over a list of edges, never as large as inputs times outputs, and builders of edges."""

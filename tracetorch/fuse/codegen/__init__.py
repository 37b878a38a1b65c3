"""Code generation: print a plan as the source of kernels that loop over time."""

"""Runtime: compile the printed kernels, cache them, and run them on the CPU or a GPU."""

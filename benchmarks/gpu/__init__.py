"""Figures of kernels for GPUs that are not there: what compilers make of them."""

"""What is known of kernels for GPUs without one: what compilers make of them."""

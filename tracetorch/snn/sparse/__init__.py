"""Products over a list of edges: the list sorted by source, the sums, and builders of edges.

Nothing here is ever as large as inputs times outputs. A product is linear in inputs, weights and
the gradient of its outputs, so its two gradients and their own are sums of the same three kinds
(``tracetorch/snn/sparse/product.py``): kernels on the CPU, which visit the edges of what is not 0,
and PyTorch's own operations elsewhere, chunk by chunk of edges.
"""

"""Write one time step of a model in C99 or JavaScript: ``tt.export.c`` is made of this.

The exported program of the step (``tt.export.step``) is read as stages over arrays at a batch of
one (``read_program``), whose memory is planned (``plan``). Pointwise operations go through the
printer of kernels, integer ones after their widths are found (``widths``); so no equation is
written again.

Order. The result of a sum in float32 depends on its order, and this one is fixed: a product begins
with its bias and adds its terms in ascending order of the input's channel, then of the kernel's
row and column; events come in ascending order, so skipping zeros changes no bit. A program that
sums in this order has the same bits; PyTorch sums in an order of its own and agrees to rounding,
and bit for bit where sums are exact. Everything else is bitwise what PyTorch computes, functions of
``math.h`` to two units in the last place.

``javascript`` spells the same stages for ``tt.export.page``: the printer is one, its words differ.
"""

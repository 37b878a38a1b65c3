"""Whole sequences through an unchanged model.

Time. By layer, a model is called once on ``[T * B, ...]``; a neuron layer finds a ``LayerPass`` set
on it, unfolds time, and runs its sequence. So nothing without memory needs to know of time, and the
user's ``forward`` is unchanged. By step is the plain loop. Either way a failed call restores the
states.

By layer is right, or it is refused. During the one call the states of all layers are set aside, so
that a ``forward`` that reads or writes one is noticed; a neuron that the walk has not found refuses
to run; and all that modules, containers and plain objects hold is compared before and after, by
identity, by version, and by value what changes without either
(``tracetorch/unrolling/outside_memory.py``, ``tracetorch/core/values.py``): arrays, random
generators, files; what can only be consumed has a stand-in for the pass, which notes it. Writes
past a version, by ``.data``, take a user's own code: without such modules or hooks no value is
read, with them twelve to twenty microseconds go into ten layers, since tensors above 64 kB are
hashed only where that code names a way to write so (``tracetorch/unrolling/own_code.py``), else
sampled. Modules known to mix time or batch, and neurons of other libraries, are refused by name.
Mixing the batch cannot be seen from outside: ``check=True`` (``tracetorch/unrolling/check.py``)
repeats every call of a module step by step, with recorded outputs in place of the modules inside
it, on the values of the run and on random ones. No two whole runs are compared: they differ in
rounding, and one spike moves all behind it.
"""

from tracetorch.unrolling.unroll import unroll

__all__ = ["unroll"]

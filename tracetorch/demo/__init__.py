"""The demo: a spiking network learns handwritten digits. Run it with ``python -m tracetorch.demo``.

``digits`` loads and splits the data, ``network`` is the model and its loop over time, ``training``
the loop over batches, ``figure`` the picture at the end, ``options`` the command line.
"""

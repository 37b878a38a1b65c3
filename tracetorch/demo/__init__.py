"""Train a spiking network on handwritten digits: ``python -m tracetorch.demo``.

``options`` parses the command line, ``network`` has the model and runs it over time, ``training``
the loop over batches, ``figure`` draws the result. ``tt.data.load_digits`` loads the digits.
"""

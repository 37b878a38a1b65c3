"""Load data sets as ``[T, B, ...]`` batches; nothing is downloaded without ``download=True``.

Data sets have one sample per index, ``(sequence [T, ...], label)`` or ``(events, label)``;
:class:`Frames` turns events into sequences, those of Tonic too, and :func:`collate` sequences into
batches: ``DataLoader(data, batch_size, collate_fn=tt.data.collate)``.
"""

from tracetorch.data.digits import Digits, load_digits
from tracetorch.data.events import Frames
from tracetorch.data.heidelberg import SHD, SSC
from tracetorch.data.ragged import Batch, collate, pad
from tracetorch.data.sequences import Sequences, japanese_vowels, made_up_words

__all__ = [
    "SHD",
    "SSC",
    "Batch",
    "Digits",
    "Frames",
    "Sequences",
    "collate",
    "japanese_vowels",
    "load_digits",
    "made_up_words",
    "pad",
]

"""Load data sets as ``[T, B, ...]`` batches; nothing is downloaded without ``download=True``.

Data sets have one sample per index, ``(sequence [T, ...], label)`` or ``(events, label)``;
:class:`Frames` turns events into sequences, and :func:`collate` sequences into batches:
``DataLoader(data, batch_size, collate_fn=tt.data.collate)``.
"""

from tracetorch.data.digits import Digits, load_digits
from tracetorch.data.dvs_gesture import DVSGesture
from tracetorch.data.events import Frames
from tracetorch.data.heidelberg import SHD, SSC
from tracetorch.data.images import torchvision_set
from tracetorch.data.nmnist import NMNIST
from tracetorch.data.ragged import Batch, collate, pad
from tracetorch.data.text import streams, text
from tracetorch.data.vowels import Sequences, japanese_vowels

__all__ = [
    "NMNIST",
    "SHD",
    "SSC",
    "Batch",
    "DVSGesture",
    "Digits",
    "Frames",
    "Sequences",
    "collate",
    "japanese_vowels",
    "load_digits",
    "pad",
    "streams",
    "text",
    "torchvision_set",
]

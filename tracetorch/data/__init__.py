"""Data as ``[T, B, ...]`` batches. Nothing is downloaded unless you ask for it."""

from tracetorch.data.digits import Digits, load_digits
from tracetorch.data.ragged import Batch, collate, pad
from tracetorch.data.text import streams, text
from tracetorch.data.vowels import Sequences, japanese_vowels

__all__ = [
    "Batch",
    "Digits",
    "Sequences",
    "collate",
    "japanese_vowels",
    "load_digits",
    "pad",
    "streams",
    "text",
]

"""Load data sets as ``[T, B, ...]`` batches; nothing is downloaded without ``download=True``.

Data sets have one sample per index, ``(sequence [T, ...], label)`` or ``(events, label)``;
:class:`Frames` turns events into sequences, and :func:`collate` sequences into batches:
``DataLoader(data, batch_size, collate_fn=tt.data.collate)``.

The formats of SHD, SSC, N-MNIST and DVS Gesture are read here, in some thirty lines each, and not
by Tonic. Tonic always downloads what it does not find, needs the archive kept beside what was
unpacked from it, opens the HDF5 file anew for every sample, and depends on librosa, expelliarmus
and importRosbag. The two still work together: ``Frames`` takes the data sets of Tonic, such as
CIFAR10-DVS and N-Caltech101, which are not read here, and Tonic's transforms, for augmentation. The
uncut AEDAT recordings of DVS Gesture, as IBM publishes them, are not read, because networks are
trained on the cut ones.
"""

from tracetorch.data.digits import Digits, load_digits
from tracetorch.data.dvs_gesture import DVSGesture
from tracetorch.data.events import Frames
from tracetorch.data.heidelberg import SHD, SSC
from tracetorch.data.images import torchvision_set
from tracetorch.data.made_up_words import made_up_words
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
    "made_up_words",
    "pad",
    "streams",
    "text",
    "torchvision_set",
]

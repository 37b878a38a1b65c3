"""Write files in the format of the Heidelberg data sets, for tests."""

from __future__ import annotations

import h5py
import numpy as np


def write_heidelberg(path, samples, speakers=1) -> None:
    """Write samples of (seconds, unit) like zenkelab.org: ragged float16 and uint16.

    The speakers take turns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        for name, column, dtype in (("times", 0, np.float16), ("units", 1, np.uint16)):
            data = spikes.create_dataset(name, (len(samples),), h5py.vlen_dtype(np.dtype(dtype)))
            for number, sample in enumerate(samples):
                data[number] = np.array([spike[column] for spike in sample], dtype)
        file["labels"] = np.arange(len(samples), dtype=np.uint16) % 20
        file["extra/speaker"] = np.arange(len(samples), dtype=np.uint16) % speakers

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tracetorch as tt
from tests.data.files import write_heidelberg

FIELDS = [("x", int), ("y", int), ("t", int), ("p", int)]
EVENTS = np.array([(0, 1, 0, 0), (2, 1, 45, 1), (2, 1, 45, 1)], dtype=FIELDS)


class Recordings(list[Any]):
    """A list with a sensor size, like the data sets of Tonic."""

    sensor_size = (3, 2, 2)


def test_frames_of_the_sensor_size_flat_or_of_one_polarity() -> None:
    frames = tt.data.Frames(Recordings([(EVENTS, 4)]), window=10)
    x, label = frames[0]
    assert (len(frames), x.shape, x.sum()) == (1, (5, 2, 2, 3), 3)
    assert x.nonzero().tolist() == [[0, 0, 1, 0], [4, 1, 1, 2]]
    assert torch.equal(label, torch.tensor(4))
    cube, _ = tt.data.Frames(Recordings([(EVENTS, 4)]), bins=2)[0]
    flat, _ = tt.data.Frames(Recordings([(EVENTS, 4)]), bins=2, flat=True)[0]
    assert torch.equal(flat, cube.reshape(2, 12))
    x, _ = tt.data.Frames([(EVENTS, 4)], (3, 2, 1), bins=1)[0]
    assert (x.shape, x.sum()) == ((1, 1, 2, 3), 3)


SENSOR = (34, 34, 2)  # N-MNIST's
DIGIT = np.array([(0, 1, 0, 0), (30, 2, 9_000, 1), (33, 2, 45_000, 1)], dtype=FIELDS)


def test_events_work_with_transforms_of_tonic() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    to_frames = transforms.ToFrame(sensor_size=SENSOR, n_time_bins=3)
    events = np.array([(0, 1, 0, 0), (33, 2, 45_000, 1), (33, 2, 90_000, 1)], dtype=FIELDS)
    expected = torch.from_numpy(to_frames(events).astype("float32"))
    # Tonic leaves the last event out
    frames = tt.data.Frames([(events, 3)], SENSOR, bins=3, stop=90_000)
    assert torch.equal(frames[0][0], expected)
    assert expected.sum() == 2


def test_augmentations_of_tonic_change_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = pytest.importorskip("tonic.transforms")

    def augmented(transform: Any) -> Any:
        return tt.data.Frames([(DIGIT.copy(), 3)], SENSOR, bins=3, transform=transform)[0][0]

    plain = augmented(None)
    assert torch.equal(augmented(transforms.RandomFlipLR(SENSOR, p=1.0)), plain.flip(-1))
    both = transforms.Compose([transforms.RandomFlipUD(SENSOR, p=1.0), transforms.DropEvent(p=0.0)])
    assert torch.equal(augmented(both), plain.flip(-2))
    assert augmented(transforms.RandomFlipPolarity(p=1.0))[:, 0].sum() == plain[:, 1].sum() == 2
    # the others of Tonic's draw from NumPy's global generator
    monkeypatch.setattr(np.random, "multivariate_normal", lambda mean, cov, n: np.full((n, 2), 1.0))
    moved = augmented(transforms.SpatialJitter(SENSOR, clip_outliers=True))
    assert moved.nonzero()[:, 2:].tolist() == [[2, 1], [3, 31]]  # one is off the sensor


def test_event_sets_of_tonic_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """N-Caltech101 names its classes, and has no size; CIFAR10-DVS has unsigned columns."""
    datasets = pytest.importorskip("tonic.datasets")
    path = tmp_path / "NCALTECH101/Caltech101/yin_yang/image_0001.bin"
    path.parent.mkdir(parents=True)
    # x, y, and polarity and time in 24 bits
    rows = [(9, 1, 0), (233, 171, 1 << 23 | 45_000), (10, 9, 1 << 23 | 90_000)]
    path.write_bytes(b"".join(bytes([x, y, *late.to_bytes(3, "big")]) for x, y, late in rows))
    monkeypatch.setattr(datasets.NCALTECH101, "_check_exists", lambda self: True)
    size, names = (240, 180, 2), ["accordion", "yin_yang"]
    with pytest.raises(TypeError, match=r"must be a number, got 'yin_yang'.*names\.index"):
        tt.data.Frames(datasets.NCALTECH101(str(tmp_path)), size, bins=2)[0]
    data = datasets.NCALTECH101(str(tmp_path), target_transform=names.index)
    x, label = tt.data.Frames(data, size, bins=2)[0]
    assert label == 1
    # Tonic moves them to the corner
    assert x.nonzero().tolist() == [[0, 0, 0, 0], [1, 1, 8, 1], [1, 1, 170, 224]]

    columns = datasets.CIFAR10DVS.dtype
    events = np.array([(1 << 40, 127, 0, True), ((1 << 40) + 9, 0, 127, False)], columns)
    dvs: Any = Recordings([(events, 9)])
    dvs.sensor_size = datasets.CIFAR10DVS.sensor_size
    x, label = tt.data.Frames(dvs, bins=2)[0]
    assert x.nonzero().tolist() == [[0, 1, 0, 127], [1, 0, 127, 0]]
    assert label == 9


def test_data_sets_print_what_they_are_and_events_off_the_sensor_are_rejected(
    tmp_path: Path,
) -> None:
    write_heidelberg(tmp_path / "shd_train.h5", [[(0.25, 3)], [(0.5, 2)]])
    data = tt.data.SHD(tmp_path)
    assert repr(data) == "SHD(2 recordings, 20 classes, sensor_size=(700, 1, 1))"
    frames = tt.data.Frames(data, window=1000.0, stop=4000.0, flat=True)
    assert repr(frames) == f"Frames({data!r}, (700, 1, 1), window=1000.0, stop=4000.0, flat=True)"
    few = tt.data.Frames([(EVENTS, 7)], (4, 1, 1), bins=3)
    assert repr(few) == "Frames(1 recordings, (4, 1, 1), bins=3)"
    for size in (None, 700, (34, 34)):
        with pytest.raises(TypeError, match=r"must be \(width, height, polarities\), got"):
            tt.data.Frames([(EVENTS, 4)], size, bins=2)
    with pytest.raises(ValueError, match=r"x=2, off the sensor of size \(2, 2\)"):
        tt.data.Frames([(EVENTS, 4)], (2, 2, 2), bins=2)[0]

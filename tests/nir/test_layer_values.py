"""Layers that their nodes' metadata describe: restored while unchanged, bounded where forged."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import layer, sequence
from tests.nir.cases import DT, double, run, simulated, unsigned
from tracetorch import snn


def exported(name: str = "BSRLIF") -> tuple[nir.NIRGraph, nn.Module]:
    net = double(layer(name, 3))
    return tt.nir.to_nir(net, (3,)), net


def test_an_unchanged_node_is_its_layer() -> None:
    graph, net = exported()
    back = tt.nir.from_nir(graph, dt=DT).nodes["0"]  # type: ignore[index]
    assert type(back) is snn.BSRLIF
    assert all(
        torch.equal(one, other)
        for one, other in zip(back.parameters(), net.parameters(), strict=True)
    )


class OnDevice(Tensor):
    """A tensor as on another device, whose sigmoid differs in the last place."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if (func is Tensor.to and "cpu" in args) or func is Tensor.cpu:
            return func(args[0].as_subclass(Tensor), *args[1:], **(kwargs or {}))
        y = super().__torch_function__(func, types, args, kwargs)
        return torch.nextafter(y, torch.ones_like(y)) if func is torch.sigmoid else y


def test_a_layer_of_another_device_is_described() -> None:
    """Its values are computed where the file is read."""
    net = double(layer("LIF", 3))
    assert isinstance(net.raw_beta, nn.Parameter)
    raw = net.raw_beta.data.as_subclass(OnDevice)
    assert not torch.equal(torch.sigmoid(raw).cpu(), torch.sigmoid(raw.cpu()))
    net.raw_beta = nn.Parameter(raw)
    graph = tt.nir.to_nir(net, (3,))
    assert graph.nodes["0"].metadata["tracetorch"]["layer"] == "LIF"


def test_an_edited_graph_is_what_it_computes() -> None:
    """A changed number makes the description wrong; the graph counts, not what it was."""
    graph, net = exported()
    inner = graph.nodes["0"].nodes
    inner["pos_reset"].scale[1] *= 0.5
    back = tt.nir.from_nir(graph, dt=DT)
    assert len(back.nodes) > 5  # type: ignore[arg-type]
    x = sequence(80, 2, 3)
    assert torch.allclose(run(back, x), simulated(unsigned(graph), x), rtol=0, atol=1e-11)
    assert not torch.allclose(run(back, x), run(net, x))


@pytest.mark.parametrize("edit", ["edge", "node", "kind", "parameter"])
def test_any_edit_is_noticed(edit: str) -> None:
    graph, _ = exported()
    part = graph.nodes["0"]
    if edit == "edge":
        part.edges.remove(("pos_reset", "mem"))
    elif edit == "node":
        part.nodes["more"] = nir.Scale(np.ones(3))
        part.edges.append(("mem", "more"))
    elif edit == "kind":
        part.nodes["pos_scale"] = nir.Threshold(part.nodes["pos_scale"].scale)
    else:
        part.metadata["tracetorch"]["raw_beta"][0] += 1e-9
    assert len(tt.nir.from_nir(graph, dt=DT).nodes) > 5  # type: ignore[arg-type]


def test_a_layer_holds_for_its_own_time_step() -> None:
    graph, _ = exported("RReadout")
    graph.metadata.clear()  # which would refuse another step
    assert len(tt.nir.from_nir(graph, dt=DT).nodes) == 3  # type: ignore[arg-type]
    assert len(tt.nir.from_nir(graph, dt=DT / 2).nodes) > 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "description",
    ["no dictionary", 7, {}, {"layer": "LIF"}, {"digest": "0"}, {"digest": 0, "dim": object()}],
)
def test_metadata_may_hold_anything(description: Any) -> None:
    graph, net = exported()
    graph.nodes["0"].metadata = {"tracetorch": description}
    back = tt.nir.from_nir(graph, dt=DT)
    x = sequence(60, 2, 3)
    assert torch.allclose(run(back, x), run(net, x), rtol=0, atol=1e-11)


WRONG: tuple[tuple[str, Any], ...] = (
    ("layer", "LIF"),
    ("layer", 3),
    ("num_neurons", 10**12),
    ("dim", -7),
    ("raw_beta", None),
    ("raw_beta", np.ones((5, 3))),
    ("raw_beta", [[1.0], [1.0, 2.0]]),
    ("raw_theta", np.ones(3)),
    ("averaging", "beta"),
    ("reset", "zero"),
)


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_description_is_not_used(key: str, value: Any) -> None:
    graph, net = exported()
    graph.nodes["0"].metadata["tracetorch"][key] = value
    back = tt.nir.from_nir(graph, dt=DT)
    x = sequence(60, 2, 3)
    assert torch.allclose(run(back, x), run(net, x), rtol=0, atol=1e-11)

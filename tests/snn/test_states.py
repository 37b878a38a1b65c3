from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

import tracetorch as tt
from tests.cases import examples, layer, module, sequence, stepped, through_save
from tests.refusals import check, refusals, unchanged
from tracetorch import snn


class Cells(snn.TTModule):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([layer("LIF", 3), layer("SRLIF", 3)])
        self.hidden = {"out": layer("RReadout", 3)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for cell in self.cells:
            x = cell(x)
        return self.hidden["out"](x)


NAMES = ["cells.0.mem"]
NAMES += [f"cells.1.{name}" for name in ("mem", "syn", "rec", "prev_output")]
NAMES += [f"hidden.out.{name}" for name in ("mem", "rec", "prev_output")]


def test_names_of_states() -> None:
    net = Cells()
    assert tt.get_states(net) == {}
    net.cells[0](torch.ones(2, 3))
    assert list(tt.get_states(net)) == NAMES[:1]
    tt.zero_states(net)
    net(torch.ones(2, 3))
    states = tt.get_states(net)
    assert list(states) == NAMES
    assert list(tt.get_states(net.cells[0])) == ["mem"]
    net.to("meta")
    tt.set_states(net, states)  # to the device of the layer
    assert net.cells[0].mem.device.type == "meta"


def test_get_states_copies_unless_detach_is_false() -> None:
    net = Cells()
    net(torch.ones(2, 3))
    copies, live = tt.get_states(net), tt.get_states(net, detach=False)
    assert not any(state.requires_grad for state in copies.values())
    storages = [state.untyped_storage().data_ptr() for state in (*copies.values(), *live.values())]
    assert len(set(storages[: len(NAMES)])) == len(NAMES)
    assert not set(storages[: len(NAMES)]) & set(storages[len(NAMES) :])
    assert live["cells.1.syn"] is net.cells[1].syn
    assert live["cells.1.syn"].requires_grad


@pytest.mark.parametrize("stored", [dict, through_save, lambda states: load(save(states))])
@given(cut=st.integers(0, 5), seed=st.integers(0, 100))
@examples(10)
def test_stream_is_resumed_exactly(stored: Any, cut: int, seed: int) -> None:
    x = sequence(5, 2, 3, seed=seed, dtype=torch.float32)
    net, resumed = Cells(), Cells()
    for step in x[:cut].unbind():
        net(step)
    resumed(torch.ones(7, 3))  # a stream of another shape, whose states must be replaced
    tt.set_states(resumed, stored(tt.get_states(net)))
    if cut < len(x):
        assert torch.equal(stepped(resumed, x[cut:]), stepped(net, x[cut:]))


def test_layers_without_given_states_are_reset_and_given_ones_keep_their_graph() -> None:
    net = Cells()
    net(torch.ones(2, 3))
    states = tt.get_states(net)
    tt.set_states(net, {"cells.0.mem": states["cells.0.mem"]})
    assert list(tt.get_states(net)) == ["cells.0.mem"]
    tt.set_states(net, {})
    assert tt.get_states(net) == {}
    made = snn.LIF(2)
    mem = torch.zeros(1, 2, requires_grad=True)
    tt.set_states(made, {"mem": mem})
    with torch.no_grad():
        mem += 1
    assert made.mem.tolist() == [[0.0, 0.0]]
    made(torch.ones(1, 2)).sum().backward()
    assert bool((mem.grad != 0).all())


ROW, REC = torch.ones(2, 3), "cells.1.rec"


@refusals(
    r"""
    {"cells.0.men": ROW} -> ValueError: no state is called 'cells.0.men'
    {"cells.0.syn": ROW} -> ValueError: no state is called 'cells.0.syn'
    {REC: None} -> ValueError: 'cells.1', SRLIF\(3\), needs all of its states or none; \['rec'
    {REC: torch.ones(2, 4)} -> ValueError: needs rec with 3 neurons at
    {REC: torch.tensor(1.0)} -> ValueError: needs rec with 3 neurons.*shape \[\]
    {REC: torch.ones(1, 3)} -> ValueError: needs its states in one shape and
    {REC: ROW.double()} -> ValueError: in one shape and dtype
    {REC: ROW.half()} -> TypeError: got torch.float16
    {REC: [1.0]} -> TypeError: keeps rec in float32 or float64, got list
    [REC] -> TypeError: states must be a mapping of names to tensors
    """
)
def test_states_that_do_not_fit_change_nothing(call: str, error: str) -> None:
    net = Cells()
    net(torch.ones(2, 3))

    def merged(changed: Any) -> Any:
        if not isinstance(changed, dict):
            return changed
        return {k: v for k, v in {**tt.get_states(net), **changed}.items() if v is not None}

    with unchanged(net):
        check(f"tt.set_states(net, merged({call}))", error, {**globals(), **locals()})
    assert list(tt.get_states(net)) == NAMES


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda a, b: {"x.y": a, "x": {"y": b}}, "two states would be called 'held.x.y.mem'"),
        (lambda a, b: {1: a, "1": b}, "two states would be called 'held.1.mem'"),
        (lambda a, b: {a, b}, r"'held.{.}' is a layer in a set, which has no order"),
    ],
)
def test_ambiguous_names_are_refused(held: Any, message: str) -> None:
    net = module(lambda s, x: x, held=held(snn.LIF(2), snn.LIF(2)))
    for act in (tt.get_states, lambda module: tt.set_states(module, {})):
        with pytest.raises(ValueError, match=message):
            act(net)
    net.zero_states()  # which needs no names

"""What layers refuse: arguments of their constructors, values that are assigned, inputs."""

# ruff: noqa: F401 (the table names what is imported)

from functools import partial
from typing import Any

import torch
from torch import nn

import tracetorch as tt
from tests.refusals import check, refusals
from tests.snn.test_inputs import driven, made
from tests.snn.test_noise import net
from tests.snn.test_populations import ExcitatoryInhibitory, chain
from tracetorch import snn

LINE = torch.linspace(0, 1, 40)[:, None]
SEQ = torch.ones(4, 2, 3)
LEAF = torch.ones(2, 3, requires_grad=True)
norm = partial(snn.BatchNormThroughTime, 3, steps=2)
delay = partial(snn.Delay, 2, max_delay=2)
each = partial(snn.DelayedLinear, 2, 3, max_delay=2)
along = partial(snn.DelayedConv1d, 2, 3, 4, max_delay=2)


def assigned(layer: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(layer, name, value)
    return layer


@refusals(
    r"""
    norm(steps=0) -> ValueError: steps must be at least 1
    norm(eps=-1.0) -> ValueError: eps must be finite and not negative
    norm(momentum=1.5) -> ValueError: momentum must lie in \[0, 1\], got 1.5
    norm(momentum=None) -> TypeError: momentum must be a number
    norm(bias=1) -> TypeError: bias must be True or False
    norm()(torch.ones(2, 4)) -> ValueError: has 3 neurons, the input has 4
    norm()(torch.ones(3)) -> ValueError: takes the batch in dimension 0
    norm()(torch.ones(1, 3)) -> ValueError: has 1 values per channel.*drop_last=True
    norm()(torch.ones(0, 3)) -> ValueError: has 0 values per channel.*drop_last=True
    norm().forward_sequence(torch.ones(5, 2, 3), ["mem"]) -> ValueError: 'mem'.* It has position
    snn.LockedDropout(3, 1.5) -> ValueError: p must lie in \[0, 1\].* got 1.5
    snn.LockedDropout(3, float("nan")) -> ValueError: p must lie in \[0, 1\]
    snn.LockedDropout(3, "half") -> TypeError: p must be a number
    assigned(snn.LockedDropout(3), p=1.5)(torch.ones(1, 3)) -> ValueError: p must lie in .* got 1.5
    assigned(snn.LockedDropout(3), p="half")(torch.ones(1, 3)) -> TypeError: p must be a number
    snn.LockedDropout(3, p=0.1)(torch.ones(1, 4)) -> ValueError: has 3 neurons, the input has 4
    snn.LockedDropout(3).eval()(torch.ones(1, 4)) -> ValueError: has 3 neurons, the input has 4
    snn.LockedDropout(8).forward_sequence(torch.ones(5, 2, 8), ["mem"]) -> ValueError: It has mask
    delay(max_delay=0) -> ValueError: max_delay must be at least 1, got 0
    delay(max_delay=2.5) -> TypeError: max_delay must be an integer
    delay(delay=3.0) -> ValueError: between 0 and max_delay=2 .* 3 to 3
    delay(delay=torch.tensor([0.0, -1])) -> ValueError: from -1 to 0
    delay(delay=torch.ones(3)) -> ValueError: of shape \[2\], got shape \[3\]
    delay(delay=torch.ones(2).long()) -> TypeError: delay must be a floating-point
    delay(delay=float("nan")) -> ValueError: delay must be finite
    delay(sigma=-1.0) -> ValueError: sigma must be finite and not negative
    delay(learnable=1) -> TypeError: learnable must be True or False
    delay()(torch.ones(1, 3)) -> ValueError: has 2 neurons, the input has 3
    delay().forward_sequence(torch.ones(3, 1, 2), ["mem"]) -> ValueError: 'mem'.* It has past
    assigned(delay(), max_delay=2) -> AttributeError: max_delay is fixed by the constructor
    each(delay=torch.ones(2, 3)) -> ValueError: of shape \[3, 2\], got
    snn.DelayedLinear(0, 3, max_delay=2) -> ValueError: in_features must be at least 1
    each(bias=1) -> TypeError: bias must be True or False
    each()(torch.ones(1, 3)) -> ValueError: takes 2 features .* has 3
    along(bias=1) -> TypeError: bias must be True or False
    along(stride=0) -> ValueError: stride must be at least 1, got 0
    along(padding=-1) -> ValueError: padding must not be negative, got -1
    along(padding="same") -> TypeError: padding must be an integer
    along(groups=2) -> ValueError: out_channels must be divisible by groups
    along(delay=torch.ones(3, 2)) -> ValueError: of shape \[3, 2, 4\], got shape
    along()(torch.ones(1, 3, 9)) -> ValueError: takes 2 channels .* has 3, shape \[1, 3, 9\]
    along()(torch.ones(1, 2, 3)) -> ValueError: kernel that is longer .* \[1, 2, 3\].* Pad more
    snn.Noise(3, distribution="gauss") -> ValueError: 'normal' or 'uniform', got 'gau
    assigned(snn.Noise(3), distribution="u")(torch.zeros(2, 3)) -> ValueError: 'uniform', got 'u'
    snn.Noise(3, seed=1.5) -> TypeError: seed must be an integer
    snn.Noise(3)(torch.ones(2, 4)) -> ValueError: has 3 neurons
    snn.Noise(3).forward_sequence(torch.ones(2, 1, 3), ["mem"]) -> ValueError: It has position
    tt.export.step(net(), torch.ones(1, 4)) -> ValueError: '1.noise', .* has no seed
    tt.nir.to_nir(snn.Noise(3), torch.ones(1, 3)) -> ValueError: no counterpart in NIR
    snn.SEWBlock("body") -> TypeError: body must be an nn\.Module, got str
    snn.SEWBlock(None) -> TypeError: body must be an nn\.Module, got NoneType
    snn.SEWBlock(nn.Identity(), "add", 1) -> TypeError: shortcut must be an nn\.Module, got int
    snn.SEWBlock(nn.Identity(), "or") -> ValueError: must be "add", "and" or "iand", got 'or'
    assigned(snn.SEWBlock(nn.Identity()), combine="or")(LINE) -> ValueError: "iand", got 'or'
    snn.SEWBlock(nn.LSTM(3, 3))(torch.ones(2, 3)) -> TypeError: must return a tensor, got tuple
    nn.Sequential(snn.SEWBlock(nn.Linear(4, 1)))(torch.ones(2, 4)) -> ValueError: block '0' combines
    snn.SEWBlock(nn.Linear(4, 1))(torch.ones(2, 4)) -> ValueError: gave \[2, 1\], its .* \[2, 4\]
    snn.Recurrent(nn.Linear(2, 2), nn.Linear(2, 2)) -> TypeError: a neuron layer, got Linear, or a
    snn.Recurrent(snn.LIF(2), abs) -> TypeError: connection must be an nn\.Module, got builtin
    snn.Recurrent(nn.Sequential(snn.LIF(2), nn.ReLU()), nn.Linear(2, 2)) -> ValueError: shape=16
    snn.Recurrent(ExcitatoryInhibitory(), nn.Linear(6, 6)) -> ValueError: Inhibitory is not known
    snn.Recurrent(snn.LIF(2), nn.Linear(2, 2), 2) -> ValueError: leave shape=2 out
    snn.Recurrent(chain(), nn.Linear(4, 6), 0) -> ValueError: shape of the output must be at least 1
    snn.Recurrent(chain(), nn.Linear(4, 6), "4") -> TypeError: of the output must be an integer
    snn.Recurrent(made(), nn.Linear(3, 3)) -> ValueError: one input, and ThreeFactor takes
    snn.random_mask(0, 3, 0.5) -> ValueError: outputs must be at least 1
    snn.random_mask(3, 3, 1.5) -> ValueError: probability must lie in \[0, 1\]
    snn.random_mask(3, 2, 0.5, self_connections=False) -> ValueError: is for a recurrent
    snn.in_degree_mask(3, 4, 5) -> ValueError: degree must be 0 to 4
    snn.in_degree_mask(4, 4, 4, self_connections=False) -> ValueError: must be 0 to 3
    snn.distance_mask(LINE, LINE.long(), torch.exp) -> TypeError: inputs must be positions
    snn.distance_mask(LINE, LINE[0], torch.exp) -> ValueError: \[40, 1\] and \[1\]
    snn.distance_mask(LINE, LINE, torch.exp) -> ValueError: in \[0, 1\], got values from
    snn.distance_mask(LINE, LINE, torch.sum) -> ValueError: a probability for each dist
    snn.LeakyIntegrator(2, rec_weight_setup={}) -> ValueError: rec.* nothing without gamma_setup
    snn.LeakyIntegrator(2, pos_scale_setup={}) -> ValueError: does nothing without pos_threshold_
    snn.LeakyIntegrator(2, neg_scale_setup={}) -> ValueError: does nothing without neg_threshold_
    snn.LIF(2, reset="hard") -> ValueError: reset must be 'subtract', 'zero' or 'none', got 'hard'
    snn.LIF(2, detach_reset=1) -> TypeError: detach_reset must be True or False, got 1
    snn.LIF(3)(torch.ones(2, 3), torch.ones(2, 3)) -> TypeError: LIF\(3\) takes \(x\), got 2 inputs
    snn.LIF(3).forward_sequence(SEQ, further=[SEQ]) -> TypeError: takes \(x\), got 2 inputs
    made().forward_sequence(SEQ) -> TypeError: got 1 inputs. Call .*, or tt.unroll
    tt.init.impulse_response(made()) -> ValueError: several inputs
    tt.init.fluctuation_(nn.Sequential(nn.Linear(3, 3), made())) -> ValueError: current\), got 1
    tt.init.tdbn_(driven(made()), torch.ones(1, 2, 3)) -> ValueError: 'neuron', .*several.*which
    tt.init.calibrate_(driven(made()), torch.ones(1, 2, 3)) -> ValueError: 'neuron', .*several.*
    tt.init.identity_(snn.SEWBlock(nn.Sequential(nn.Linear(3, 3), made()))) -> ValueError: body\.1
    tt.online(made(), "eprop")(SEQ[0], LEAF, SEQ[0]) -> ValueError: modulator, with a gradient
    tt.nir.to_nir(made(), torch.ones(2, 3)) -> TypeError: takes \(x, modulator, current\), got 1
    tt.plot.save_playground(made(), "page.html") -> ValueError: several inputs
    """
)
def test_what_layers_refuse(call: str, error: str) -> None:
    check(call, error, globals())

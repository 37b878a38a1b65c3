"""What layers refuse: arguments of their constructors, values that are assigned, inputs."""

# ruff: noqa: F401 (the table names what is imported)

from functools import partial
from math import inf, nan
from typing import Any

import numpy as np
import torch
from torch import nn

import tracetorch as tt
from tests.refusals import check, refusals
from tests.snn.test_initial_states import made as resting
from tests.snn.test_inputs import beside, driven, made
from tests.snn.test_noise import net
from tests.snn.test_populations import ExcitatoryInhibitory, chain
from tracetorch import snn

LINE = torch.linspace(0, 1, 40)[:, None]
SEQ = torch.ones(4, 2, 3)
LEAF = torch.ones(2, 3, requires_grad=True)
norm = partial(snn.BatchNormThroughTime, 3, steps=2)
delay = partial(snn.Delay, 2, max_delay=2)
each = partial(snn.DelayedLinear, 2, 3, max_delay=2)
groups = tt.param_groups
relative = partial(groups, weight_decay=0.1, lr=1.0, relative=True)
nans = nn.Linear(2, 2)
nn.init.constant_(nans.weight, nan)


def assigned(layer: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(layer, name, value)
    return layer


def alpha(setup: Any) -> Any:
    return snn.LeakyIntegrator(2, alpha_setup=setup)


def zeroed(layer: Any) -> None:
    layer(SEQ[0, 0])
    layer.zero_states(where=torch.tensor([True, False, True]))


def called(layer: Any) -> Any:
    layer(SEQ[0])
    return layer


@refusals(
    r"""
    norm(eps=-1.0) -> ValueError: eps must be finite and not negative
    norm(bias=1) -> TypeError: bias must be True or False
    norm()(torch.ones(2, 4)) -> ValueError: has 3 neurons, the input has 4
    tt.set_states(norm(), {"position": SEQ[0].long()}) -> ValueError: with one value per sample at d
    called(norm())(torch.ones(5, 3)) -> ValueError: position of shape \[2, 1\].* shape \[5, 3\]
    norm()(torch.ones(3)) -> ValueError: takes the batch in dimension 0
    norm()(torch.ones(1, 3)) -> ValueError: fewer than two values per channel.*drop_last=True
    tt.nir.to_nir(norm().eval(), torch.ones(2, 3)) -> ValueError: no counterpart in NIR
    norm().forward_sequence(torch.ones(5, 2, 3), ["mem"]) -> ValueError: 'mem'.* It has position
    snn.LockedDropout(3, p=0.1)(torch.ones(1, 4)) -> ValueError: has 3 neurons, the input has 4
    snn.LockedDropout(8).forward_sequence(torch.ones(5, 2, 8), ["mem"]) -> ValueError: It has mask
    delay(delay=torch.ones(3)) -> ValueError: of shape \[2\], got shape \[3\]
    delay(sigma=-1.0) -> ValueError: sigma must be finite and not negative
    delay(learnable=1) -> TypeError: learnable must be True or False
    tt.set_states(delay(), {"past": SEQ[:2, :, :3]}) -> ValueError: at dim -1 and \[2\] behind
    called(snn.Delay(3, max_delay=2))(torch.ones(5, 3)) -> ValueError: past of shape .* \[5, 3\]
    zeroed(snn.Delay(3, max_delay=2)) -> ValueError: has its neurons at dimension 0
    zeroed(snn.LIF(3)) -> ValueError: has its neurons at dimension 0, where the mask looks
    zeroed(snn.LIF(3, dim=0)) -> ValueError: has its neurons at dimension 0, where the mask looks
    delay()(torch.ones(1, 3)) -> ValueError: has 2 neurons, the input has 3
    delay().forward_sequence(torch.ones(3, 1, 2), ["mem"]) -> ValueError: 'mem'.* It has past
    assigned(delay(), max_delay=2) -> AttributeError: max_delay is fixed by the constructor
    each(delay=torch.ones(2, 3)) -> ValueError: of shape \[3, 2\], got
    snn.DelayedLinear(0, 3, max_delay=2) -> ValueError: in_features must be at least 1
    each()(torch.ones(1, 3)) -> ValueError: has 2 neurons, the input has 3
    assigned(snn.Noise(3), distribution="u")(torch.zeros(2, 3)) -> ValueError: 'uniform', got 'u'
    snn.Noise(3, seed=1.5) -> TypeError: seed must be an integer
    snn.Noise(3)(torch.ones(2, 4)) -> ValueError: has 3 neurons
    snn.Noise(3).forward_sequence(torch.ones(2, 1, 3), ["mem"]) -> ValueError: It has position
    tt.export.step(net(), torch.ones(1, 4)) -> ValueError: '1.noise', .* has no seed
    tt.nir.to_nir(snn.Noise(3), torch.ones(1, 3)) -> ValueError: no counterpart in NIR
    snn.SEWBlock("body") -> TypeError: body must be an nn\.Module, got str
    snn.SEWBlock(nn.Identity(), "add", 1) -> TypeError: shortcut must be an nn\.Module, got int
    snn.SEWBlock(nn.Identity(), "or") -> ValueError: must be 'add', 'and' or 'iand', got 'or'
    snn.SEWBlock(nn.LSTM(3, 3))(torch.ones(2, 3)) -> TypeError: must return a tensor, got tuple
    nn.Sequential(snn.SEWBlock(nn.Linear(4, 1)))(torch.ones(2, 4)) -> ValueError: block '0' combines
    snn.SEWBlock(nn.Linear(4, 1))(torch.ones(2, 4)) -> ValueError: gave \[2, 1\], its .* \[2, 4\]
    snn.Recurrent(nn.Linear(2, 2), nn.Linear(2, 2)) -> TypeError: a neuron layer, got Linear, or a
    snn.Recurrent(snn.LIF(2), abs) -> TypeError: connection must be an nn\.Module, got builtin
    snn.Recurrent(nn.Sequential(snn.LIF(2), nn.ReLU()), nn.Linear(2, 2)) -> ValueError: shape=16
    snn.Recurrent(ExcitatoryInhibitory(), nn.Linear(6, 6)) -> ValueError: Inhibitory is not known
    snn.Recurrent(snn.LIF(2), nn.Linear(2, 2), 2) -> ValueError: leave shape=2 out
    snn.Recurrent(chain(), nn.Linear(4, 6), 0) -> ValueError: shape of the output must be at least 1
    snn.Recurrent(made(), nn.Linear(3, 3)) -> ValueError: one input, and ThreeFactor takes
    snn.random_mask(0, 3, 0.5) -> ValueError: outputs must be at least 1
    snn.random_mask(3, 2, 0.5, self_connections=False) -> ValueError: is for a recurrent
    snn.in_degree_mask(4, 4, 4, self_connections=False) -> ValueError: must be 0 to 3
    snn.distance_mask(LINE, LINE.long(), torch.exp) -> TypeError: inputs must be positions
    snn.distance_mask(LINE, LINE[0], torch.exp) -> ValueError: \[40, 1\] and \[1\]
    snn.LeakyIntegrator(2, rec_weight_setup={}) -> ValueError: rec.* nothing without gamma_setup
    snn.LeakyIntegrator(2, pos_scale_setup={}) -> ValueError: does nothing without pos_threshold_
    snn.LIF(0) -> ValueError: num_neurons must be at least 1, got 0
    snn.LIF(2.0) -> TypeError: num_neurons must be an integer, got 2.0
    snn.BLIF(2, neg_threshold=-1.0) -> ValueError: neg_threshold must be positive and finite, got -1
    snn.RLIF(2, bias=torch.tensor([0.0, inf])) -> ValueError: bias must be finite, got inf
    snn.LIF(2)._replicate_for_data_parallel() -> RuntimeError: states away.*DistributedDataParallel
    snn.LIF(4)([[1.0] * 4]) -> TypeError: got list. Convert .* torch.as_tensor
    snn.LIF(4)(torch.ones(2, 4).long()) -> TypeError: got torch.int64. Convert .* \.float
    snn.LIF(4)(torch.ones(2, 7)) -> ValueError: 4 neurons, the input has 7 at dim -1, shape \[2, 7\]
    snn.LIF(4, dim=-3)(LINE) -> ValueError: the input has no dim -3
    assigned(snn.LIF(3), mem=0.0)(SEQ[0]) -> TypeError: LIF\(3\) needs a tensor as mem, got float
    called(snn.LIF(3))(torch.ones(1, 3)) -> ValueError: \[2, 3\].*input has shape \[1, 3\]
    called(snn.LIF(3))(torch.ones(3)) -> ValueError: mem of shape \[2, 3\].*input has shape \[3\]
    called(snn.LIF(3))(SEQ[0].double()) -> ValueError: \[2, 3\], torch.float32.*needs torch.float64
    called(snn.LIF(3))(SEQ[0].to("meta")) -> ValueError: on cpu; .* on meta
    snn.LIF(3).decay("two words") -> ValueError: LIF cannot call an input, state, .* 'two words'
    resting().state("u", init=0.0) -> ValueError: has no state 'u' in \('v', 'w', 'plain'\)
    resting().state("v", init=0.0) -> ValueError: cannot call an input, state, .* 'initial_v'
    resting().state("plain", init=torch.zeros(4)) -> ValueError: or \[3\], one .* got shape \[4\]
    made()(SEQ[0], SEQ[0], 1.0) -> TypeError: floating-point tensors as inputs, got float as curr
    made()(SEQ[0], SEQ[0].long(), SEQ[0]) -> TypeError: int64 as modulator
    made()(SEQ[0], SEQ.new_ones(2, 4), SEQ[0]) -> ValueError: modulator has the shape \[2, 4\]
    made()(SEQ, SEQ, modulator=SEQ) -> TypeError: got 2 inputs and modulator
    tt.unroll(beside(SEQ.new_ones(5, 3)), SEQ) -> ValueError: 'neuron'.* beside one of \[8, 3\]
    tt.unroll(beside(SEQ.new_ones(8)), SEQ) -> ValueError: modulator .* not broadcast to \[4, 2, 3\]
    snn.LIF(2, beta=0.0) -> ValueError: beta must lie strictly between 0 and 1 .*, got 0.0
    snn.LIF(2, beta=nan) -> ValueError: beta must lie strictly .*, got nan
    snn.LIF(2, beta=torch.tensor([0.5, 1.1])) -> ValueError: beta must lie strictly .*, got 1.1
    snn.LIF(2, beta=torch.full((3,), 0.5)) -> ValueError: beta must be .* \[2\], .* got shape \[3\]
    snn.LIF(2, beta=torch.full((1,), 0.5)) -> ValueError: got shape \[1\]
    snn.LIF(2, beta=torch.tensor([1, 0])) -> TypeError: beta must be a floating-point tensor, got
    snn.LIF(2, beta=[0.5, 0.5]) -> TypeError: beta must be a number or a tensor, got list
    snn.LIF(2, beta=True) -> TypeError: beta must be a number or a tensor, got bool
    snn.LIF(2, pos_threshold=0.0) -> ValueError: pos_threshold must be positive and finite, got 0.0
    snn.LIF(2, pos_threshold=1e39) -> ValueError: pos_threshold is beyond the range of torch.flo
    snn.LIF(2, beta_rank=2) -> ValueError: beta: rank must be 0 .* or 1 .*, got 2
    snn.LIF(2, beta_rank=True) -> ValueError: beta: rank must be 0 .* or 1 .*, got True
    snn.LIF(2, learn_beta=1) -> TypeError: beta: learnable must be True or False, got 1
    snn.LIF(2, beta_ema="no") -> TypeError: beta: use_averaging must be True or False, got 'no'
    snn.LIF(2, surrogate_derivative=None) -> TypeError: surrogate must be callable, .* got NoneType
    snn.LIF(2, dim=1.0) -> TypeError: dim must be an integer, got 1.0
    alpha({"lernable": True}) -> ValueError: no key 'lernable'. Its keys are value, rank, learnable
    alpha(snn.Weight(1.0)) -> TypeError: must be a dict, a Decay or None, got Weight
    groups(snn.LIF(2), 0.1, lr=nan) -> ValueError: lr must be finite .* got nan
    groups(snn.LIF(2), 0.1, neuron_lr_scale=2.0) -> ValueError: multiple of lr: give lr= here
    groups(snn.LIF(2), 0.1, neuron_lr_scale=True) -> TypeError: scale must be a number, got T
    groups(snn.LIF(2), 0.1, lr=1.0, relative=1) -> TypeError: relative must be True or F
    groups(snn.LIF(2), 0.1, relative=True) -> ValueError: relative=True scales lr: give lr= h
    relative(nn.Sequential(nn.LazyLinear(2))) -> ValueError: 0.weight has no .*Run the model once
    relative(nn.Linear(2, 2, device="meta")) -> ValueError: weight has no values yet
    relative(nans) -> ValueError: weight is not finite, so it has no scale
    groups(nn.Flatten(), 0.1) -> ValueError: Flatten has no parameters to put in groups
    snn.LIF(2, reset="hard") -> ValueError: reset must be 'subtract', 'zero' or 'none', got 'hard'
    snn.LIF(2, detach_reset=1) -> TypeError: detach_reset must be True or False, got 1
    snn.LIF(3)(torch.ones(2, 3), torch.ones(2, 3)) -> TypeError: LIF\(3\) takes \(x\), got 2 inputs
    snn.LIF(3).forward_sequence(SEQ, further=[SEQ]) -> TypeError: takes \(x\), got 2 inputs
    snn.LIF(3).forward_sequence(SEQ, reset=SEQ[0]) -> TypeError: must hold booleans, got torch.floa
    snn.LIF(3).forward_sequence(SEQ, reset=SEQ[:1, 0] > 0) -> ValueError: \[4, 2\], got \[1, 3\]
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

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import tracetorch as tt
from tests.cases import layer, module, sequence, weighted_sum
from tests.unrolling.models import MODELS, By, Whole, dyadic, made
from tracetorch import fuse, snn


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Count the bytes that autograd saves beside known tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__(self.pack, lambda x: x)
        self.seen = {x.untyped_storage()._cdata for x in known}
        self.total = 0

    def pack(self, x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in self.seen:
            self.seen.add(x.untyped_storage()._cdata)
            self.total += x.untyped_storage().nbytes()
        return x


def test_auto_is_four_times_the_square_root() -> None:
    rows: list[int] = []
    model, x = nn.Sequential(nn.Linear(3, 2), snn.LIF(2)), sequence(30, 2, 3).float()
    with torch.no_grad():
        tt.unroll(model, x)  # compared by step
        model[0].register_forward_hook(lambda module, args, y: rows.append(len(y)))
        tt.unroll(model, x, segment="auto")
    assert rows == [2 * 20, 2 * 10]


def both(run: Callable[[Any], Any], segment: Any = 3) -> tuple[Any, Any]:
    """Return what a run gives with segments, and without."""
    torch.manual_seed(0)
    expected = run(None)
    torch.manual_seed(0)
    return run(segment), expected


@pytest.mark.one_in(3)
@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("segment", [1, 4, 5, 11, 99, "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_states_and_gradients_equal_those_without_segments(name, segment, by):
    def run(cut: Any) -> Any:
        model = made(name)
        start, x = (dyadic(n, *MODELS[name][1], seed=n).requires_grad_() for n in (2, 11))
        tt.unroll(model, start)  # the states it starts from have a graph
        y, seen = tt.unroll(model, x, by=by, segment=cut, record=["mem", "input", "output"])
        states = tt.get_states(model)
        (y.square().sum() + sum(s.square().sum() for s in seen.values())).backward()
        torch.testing.assert_close(tt.get_states(model), states, rtol=0, atol=0)
        return [y, seen, states], [each.grad for each in (start, x, *model.parameters())]

    (found, grads), (expected, expected_grads) = both(run, segment)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected_grads)


def fresh(decay: float) -> snn.Neuron:
    """Make a neuron of a class whose kernel does not exist yet."""

    def step(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = decay * mem + x * x
        return mem, mem

    return type("Fresh", (snn.Neuron,), {"states": ("mem",), "step": staticmethod(step)})(3)


def test_first_run_of_a_new_neuron_class_saves_what_any_run_does() -> None:
    grads: list[Tensor] = []
    for run in (
        lambda x: tt.unroll(fresh(0.625), x, segment=2),
        lambda x: tt.unroll(fresh(0.625), x, by="step"),
        lambda x: checkpoint(Whole(fresh(0.625)), x, use_reentrant=False),
    ):
        x = sequence(6, 2, 3).requires_grad_()
        grads += torch.autograd.grad(weighted_sum(run(x)), x)
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[2], grads[1])
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"), fuse.backend("cpu"):
        tt.unroll(fresh(0.875), x.detach().requires_grad_()).sum().backward()


@pytest.mark.parametrize("by", ["layer", "step"])
def test_memory_is_that_of_the_checkpoints_and_of_one_segment(by: By) -> None:
    T, segment, B = 64, 8, 4
    net = nn.Sequential(nn.Linear(8, 32), snn.SRLIF(32), nn.Linear(32, 16), snn.Readout(16))
    x = torch.rand(T, B, 8)
    totals = {}
    for cut in (None, segment):
        tt.zero_states(net)
        saved = SavedBytes([x, *net.parameters()])
        with saved:
            y = tt.unroll(net, x, by=by, segment=cut)
        totals[cut] = saved.total
        y.sum().backward()
    states = 4 * B * (4 * 32 + 16)  # bytes of the states of one checkpoint
    cuts = (T // segment - 1) * states
    # the states of the checkpoints are held by the segments, whoever saves the rest
    assert totals[segment] < 1.2 * (cuts + totals[None] * segment / T) + 8192
    assert totals[segment] + cuts < totals[None] / 2


@pytest.mark.parametrize("by", ["layer", "step"])
def test_dropout_repeats_its_mask_and_batch_norm_counts_once(by: By) -> None:
    """Compare with separate calls for the segments; backward keeps the running statistics."""
    x = torch.randn(10, 2, 1, 6, 6)

    def run(segment: int | None) -> Any:
        first = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), snn.LIF(3, dim=-3), nn.Dropout(0.5)
        model = nn.Sequential(*first, nn.Flatten(), nn.Linear(48, 4), snn.Readout(4))
        pieces = x.split(3) if segment is None else [x]
        y = torch.cat([tt.unroll(model, piece, by=by, segment=segment) for piece in pieces])
        y.square().sum().backward()
        return [y, [p.grad for p in model.parameters()], dict(model.named_buffers())]

    found, expected = both(run)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found[2]["1.num_batches_tracked"] == (4 if by == "layer" else 10)


def static(segment: int | None) -> Any:
    model = made("dense")
    y = tt.unroll(model, dyadic(2, 3), steps=10, segment=segment, time_dim=-1)
    return torch.autograd.grad(weighted_sum(y), model[0].weight)


def functional(segment: int | None) -> Any:
    whole = Whole(made("dense"), segment=segment)
    parameters = {n: (p / 2).detach().requires_grad_() for n, p in whole.named_parameters()}
    y = functional_call(whole, parameters, (dyadic(8, 2, 3),))
    found = torch.autograd.grad(y.square().sum(), list(parameters.values()))
    assert all(type(p) is nn.Parameter for p in whole.parameters())
    return found


def second(segment: int | None) -> Any:
    net = nn.Sequential(nn.Linear(3, 3), snn.Readout(3)).double()
    x = sequence(5, 2, 3).requires_grad_()
    with fuse.backend("eager"):
        y = tt.unroll(net, x, segment=segment)
        first = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x)


def other_mode(segment: int | None) -> Any:
    parts = nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), layer("LIF", 8)
    model = nn.Sequential(*parts)
    y = tt.unroll(model, sequence(9, 2, 3).float(), by="step", segment=segment)
    model.eval()
    weighted_sum(y).backward()
    assert not any(module.training for module in model.modules())
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("run", [static, functional, second, other_mode])
def test_gradients_of_a_static_input_functional_second_and_in_another_mode(run: Any) -> None:
    torch.testing.assert_close(*both(run))


def test_backward_keeps_the_current_states() -> None:
    model, x = made("dense"), dyadic(8, 2, 3)
    y = tt.unroll(model, x, segment=3)
    tt.detach_states(model)
    later = tt.unroll(model, x)
    states = tt.get_states(model, detach=False)
    y.sum().backward()
    assert all(state is states[n] for n, state in tt.get_states(model, detach=False).items())
    later.sum().backward()


def test_truncated_and_second_backward() -> None:
    model, x = made("dense"), dyadic(8, 2, 3)
    y = tt.unroll(model, x, segment=3).sum()
    y.backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    y.backward()
    torch.testing.assert_close(model[0].weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match=r"Call detach_states\(\) after each backward\(\)"):
        y.backward()
    with pytest.raises(RuntimeError, match=r"Call detach_states\(\) after each backward\(\)"):
        tt.unroll(model, x, segment=3).sum().backward()
    tt.detach_states(model)
    tt.unroll(model, x, segment=3).sum().backward()


@pytest.mark.parametrize("learn", [True, False])
def test_error_names_a_parameter_changed_before_backward(learn: bool) -> None:
    model: Any = nn.Sequential(layer("LIF", 3, learn_beta=learn), nn.Linear(3, 3))
    x = sequence(9, 2, 3, dtype=torch.float32)
    for change in (lambda: model[0].raw_beta.add_(1.0), model.double):
        y = tt.unroll(model, x, segment=3, from_rest=True)
        with torch.no_grad():
            change()
        with pytest.raises(RuntimeError, match=r"or moved .* Call backward\(\) before .*model\.to"):
            y[0].sum().backward()


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_may_be_frozen_or_learned_between_the_passes(frozen: bool) -> None:
    def run(segment: int | None) -> Any:
        model = nn.Sequential(nn.Linear(3, 3), layer("LIF", 3), nn.Linear(3, 3)).double()
        model[0].weight.requires_grad_(frozen)
        y = tt.unroll(model, sequence(9, 2, 3), segment=segment)
        model[0].weight.requires_grad_(not frozen)
        weighted_sum(y).backward()
        assert model[0].weight.requires_grad is not frozen
        assert model[0].weight.grad is None  # as in PyTorch, where neither is accumulated
        return [p.grad for p in model.parameters()][1:]

    torch.testing.assert_close(*both(run))


def test_what_cannot_run_again_is_refused() -> None:
    whole = Whole(made("dense"), segment=2)
    parameters = {n: p.detach() for n, p in whole.named_parameters()}
    with pytest.raises(ValueError, match=r"which a transform of torch\.func does not"):
        grad(lambda p: functional_call(whole, p, (dyadic(4, 2, 3),)).sum())(parameters)
    parallel = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(parallel)  # without a group of processes
    with pytest.raises(ValueError, match="wrap a module whose forward unrolls in segments"):
        tt.unroll(nn.Sequential(parallel), dyadic(4, 2, 3), segment=2)


def counts() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.total.mul_(0.9).add_(x.detach().mean(0))
        s.trace = 0.5 * s.trace + x.detach().mean(0)
        return s.cell(s.linear(x) + s.total + s.trace)

    model = module(forward, linear=nn.Linear(3, 3), cell=layer("LIF", 3))
    model.register_buffer("total", torch.zeros(3))
    model.register_buffer("trace", torch.zeros(3))
    return model


@pytest.mark.parametrize(
    "build",
    [
        counts,
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), layer("LIF", 3)),
        lambda: nn.Sequential(spectral_norm(nn.Linear(3, 3)), layer("LIF", 3)),
    ],
)
def test_buffers_are_what_they_were_when_a_segment_runs_again(build: Any) -> None:
    def run(segment: int | None) -> Any:
        model = build().double()
        y = tt.unroll(model, sequence(9, 4, 3), by="step", segment=segment)
        grads = torch.autograd.grad(y.square().sum(), [*model.parameters()])
        return [y.detach(), grads, model.state_dict()]

    torch.testing.assert_close(*both(run, 2))


STEPS = sequence(7, 3, 4)


def calls(function: Callable[[], float]) -> nn.Module:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    forward = lambda s, x: s.cell(s.linear(x)) * (1.0 + function())  # noqa: E731
    return module(forward, linear=nn.Linear(4, 4), cell=layer("LIF", 4)).double()


def test_pytorchs_generator_draws_the_same_numbers_again() -> None:
    def run(segment: int | None) -> Any:
        model = calls(lambda: float(torch.randn(())))
        y = tt.unroll(model, STEPS, by="step", segment=segment)
        grads = torch.autograd.grad(weighted_sum(y.square()), [*model.parameters()])
        return [y.detach(), *grads, torch.randn(())]

    torch.testing.assert_close(*both(run))


UNSEEN: dict[str, Callable[[], Callable[[], float]]] = {
    "a closure": lambda: functools.partial(next, itertools.count(1)),
    "the operating system's generator": lambda: random.SystemRandom().random,
    "Python's generator": lambda: random.random,
    "NumPy's generator": lambda: np.random.standard_normal,
    "a slow drift": lambda: (lambda numbers: lambda: 1e-3 * next(numbers))(itertools.count()),
}


@pytest.mark.parametrize("by", ["layer", "step"])
@pytest.mark.parametrize("name", UNSEEN)
def test_a_segment_that_computes_something_else_is_an_error(name: str, by: By) -> None:
    model = calls(UNSEEN[name]())
    if by == "layer" and name not in ("Python's generator", "NumPy's generator"):
        with pytest.raises(ValueError, match="by layer than by step: the model remembers"):
            tt.unroll(model, STEPS, segment=3)
        assert not tt.get_states(model)
        return
    y = tt.unroll(model, STEPS, by=by, segment=3, record="mem")[0]
    with pytest.raises(RuntimeError, match=r"segment 3:6 of .*something else when backward"):
        y.square().sum().backward()


def test_outputs_that_were_written_to_are_not_compared() -> None:
    model: Any = calls(lambda: 0.0)
    y = tt.unroll(model, STEPS, segment=3)
    y.mul_(2.0)
    y.sum().backward()
    assert all(bool(p.grad.any()) for p in model.linear.parameters())


def test_a_model_of_inference_mode_and_parts_without_states() -> None:
    with torch.inference_mode():
        frozen = nn.Linear(4, 4).double()
    net = nn.Sequential(layer("LIF", 4).double(), frozen, layer("LIF", 4).double(), nn.Sequential())
    with torch.no_grad():
        assert tt.unroll(net, STEPS, segment=3).shape == STEPS.shape


@pytest.mark.parametrize("segment", [1, 2])
def test_a_parametrized_layer_saves_as_much_the_first_time_as_again(segment: int) -> None:
    net = nn.Sequential(nn.Linear(4, 4), layer("LIF"), nn.Linear(4, 2)).double()
    nn.utils.parametrize.register_parametrization(net[1], "raw_beta", nn.Sigmoid())
    found = []
    for cut in (segment, None):  # what is kept for a shape is made in the first call
        y = tt.unroll(net, sequence(6, 3, 4), from_rest=True, segment=cut)
        found.append([y, *torch.autograd.grad(weighted_sum(y), [*net.parameters()])])
    torch.testing.assert_close(*found)

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel

import tracetorch as tt
from tests.cases import PLACES, examples, sequence, stepped, weighted_sum
from tests.snn.test_recurrent import DoubledLinear, gradcheck_from
from tracetorch import snn

D = 4
IN, OUT = 3, 5


def delays(*shape: int, whole: bool = False) -> Tensor:
    """Draw delays between 0 and D, both ends among them, none near a kink unless ``whole``."""
    generator = torch.Generator().manual_seed(1)
    lower = torch.randint(0, D, shape, generator=generator).double()
    drawn = lower + (0 if whole else 0.1 + 0.3 * torch.rand(shape, generator=generator))
    flat = drawn.reshape(-1)
    flat[0], flat[-1] = (0, D) if whole else (0.2, D - 0.2)
    return drawn


def axonal(whole: bool = False, **options: Any) -> snn.Delay:
    return snn.Delay(IN, max_delay=D, delay=delays(IN, whole=whole), **options).double()


def synaptic(whole: bool = False, **options: Any) -> snn.DelayedLinear:
    """Build a layer whose weights are small dyadic numbers, so that sums of products are exact."""
    torch.manual_seed(0)
    made = snn.DelayedLinear(IN, OUT, max_delay=D, delay=delays(OUT, IN, whole=whole), **options)
    with torch.no_grad():
        for p in made.linear.parameters():
            p.copy_((p * 16).round() / 16)
    return made.double()


def dyadic(*shape: int) -> Tensor:
    return (8 * sequence(*shape)).round() / 8


KINDS = {"Delay": axonal, "DelayedLinear": synaptic}
SHAPE = (2, IN)  # of one step
every_kind = pytest.mark.parametrize("kind", KINDS)
every_sigma = pytest.mark.parametrize("sigma", [0.0, 0.6, 3.0])


def shifted(x: Tensor, steps: int) -> Tensor:
    y = torch.zeros_like(x)
    y[steps:] = x[: max(len(x) - steps, 0)]
    return y


@pytest.mark.parametrize(("dim", "shape"), PLACES)
def test_neurons_lie_along_dim(dim: int, shape: tuple[int, ...]) -> None:
    model, x = (
        snn.Delay(3, dim, max_delay=2, delay=torch.tensor([0.0, 1.0, 2.0])),
        sequence(5, *shape),
    )
    expected = torch.stack([shifted(x.select(dim % len(shape) + 1, n), n) for n in range(3)])
    assert torch.equal(tt.unroll(model, x), expected.movedim(0, dim % len(shape) + 1))
    assert model.past.shape == (*shape, 2)
    model.zero_states(where=torch.tensor([True, False]))
    assert not bool(model.past[0].any())
    assert torch.equal(model.past[1], x[-2:, 1].movedim(0, -1))


def naive(model: snn.DelayedLinear, x: Tensor) -> Tensor:
    """Add up the synapses one by one, each a shifted input."""
    weight, lags = model.linear.weight.detach(), model.delay.detach()
    outputs, inputs = weight.shape
    y = torch.zeros(*x.shape[:-1], outputs, dtype=x.dtype)
    for o, i in itertools.product(range(outputs), range(inputs)):
        y[..., o] += weight[o, i] * shifted(x[..., i], int(lags[o, i]))
    return y if model.linear.bias is None else y + model.linear.bias.detach()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 2, IN), (3, 1, IN), (7, 2, 4, IN), (1, 2, IN)])
def test_whole_delay_of_a_synapse_is_shifted_input(shape: tuple[int, ...], bias: bool) -> None:
    model, x = synaptic(whole=True, bias=bias), dyadic(*shape)
    for by in ("layer", "step"):
        assert torch.equal(tt.unroll(model, x, by=by, from_rest=True), naive(model, x))


def weights(delay: float, sigma: float) -> Tensor:
    lags = torch.arange(D + 1).double()
    if sigma == 0:
        return (1 - (lags - delay).abs()).clamp(min=0)
    gauss = torch.exp(-((lags - delay) ** 2) / (2 * sigma**2))
    return gauss / gauss.sum()


@every_sigma
def test_interpolation(sigma: float) -> None:
    one, x = axonal(sigma=sigma), sequence(9, 2, IN)
    kernels = [weights(float(lag), sigma) for lag in one.delay.detach()]
    expected = torch.stack(
        [sum(w * shifted(x[..., n], k) for k, w in enumerate(kernels[n])) for n in range(IN)], -1
    )
    torch.testing.assert_close(tt.unroll(one, x), expected)
    each = synaptic(sigma=sigma).requires_grad_(False)
    expected = each.linear.bias.expand(9, 2, OUT).clone()
    for o in range(OUT):
        for i in range(IN):
            kernel = weights(float(each.delay[o, i]), sigma) * each.linear.weight[o, i]
            expected[..., o] += sum(w * shifted(x[..., i], k) for k, w in enumerate(kernel))
    torch.testing.assert_close(tt.unroll(each, x), expected)
    with torch.no_grad():  # a delay that is not a number shows in the output
        one.raw_delay[1] = torch.nan
    one.zero_states()
    assert one(torch.ones(1, IN).double()).isnan().tolist() == [[False, True, False]]
    narrow = snn.Delay(1, max_delay=3, delay=1.4, sigma=1e-4)
    y = stepped(narrow, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    assert y.flatten().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.slow
@every_kind
@every_sigma
def test_gradcheck(kind: str, sigma: float) -> None:
    past = {"past": sequence(*SHAPE, D, seed=2)}
    gradcheck_from(KINDS[kind](sigma=sigma), sequence(6, *SHAPE), past)


def test_derivative_at_a_whole_delay_is_the_mean_of_both_sides() -> None:
    x = sequence(6, 1, 1)
    for make in (
        lambda lag: snn.Delay(1, max_delay=D, delay=lag).double(),
        lambda lag: snn.DelayedLinear(1, 1, False, max_delay=D, delay=lag).double(),
    ):
        grads = []
        for lag in (2.0 - 1e-3, 2.0, 2.0 + 1e-3):
            torch.manual_seed(0)
            model: Any = make(lag)
            weighted_sum(tt.unroll(model, x)).backward()
            grads.append(model.raw_delay.grad)
        torch.testing.assert_close(grads[1], (grads[0] + grads[2]) / 2)
        assert not torch.allclose(grads[0], grads[2])


@every_kind
def test_delay_outside_acts_as_the_end_and_rounding_makes_shifts(kind: str) -> None:
    model, x = KINDS[kind](), dyadic(9, *SHAPE)
    with torch.no_grad():
        model.raw_delay.fill_(D + 2.5)
    y = tt.unroll(model, x, from_rest=True)
    weighted_sum(y).backward()
    weight = torch.ones(IN) if isinstance(model, snn.Delay) else model.linear.weight
    assert torch.equal(model.raw_delay.grad != 0, weight != 0)  # it can come back
    model.raw_delay.data.fill_(D)
    assert torch.equal(tt.unroll(model, x, from_rest=True), y)
    model = KINDS[kind](sigma=1.5)
    with torch.no_grad():
        model.raw_delay.view(-1)[0] = D + 3.0
    rounded = model.delay.detach().round()
    model.round_()
    assert model.sigma == 0.0
    assert torch.equal(model.raw_delay, rounded)
    if isinstance(model, snn.DelayedLinear):
        assert torch.equal(tt.unroll(model, x), naive(model, x))


@every_kind
@every_sigma
@given(cuts=st.lists(st.integers(0, 3), min_size=1, max_size=6))
@examples(10)
def test_stream_is_the_sequence_cut_anywhere(kind: str, sigma: float, cuts: list[int]) -> None:
    model, x = KINDS[kind](sigma=sigma), dyadic(sum(cuts) + 2, *SHAPE)
    x.requires_grad_()
    whole = tt.unroll(model, x)
    grads = torch.autograd.grad(weighted_sum(whole), [x, *model.parameters()])
    past = model.past
    model.zero_states()
    parts = []
    for part in x.split([*cuts, 2]):
        parts.append(model.forward_sequence(part)[0])
    y = torch.cat(parts)
    cut_grads = torch.autograd.grad(weighted_sum(y), [x, *model.parameters()])
    # the sums of the convolution may be taken in another order
    exact = torch.equal if kind == "Delay" else torch.allclose
    assert exact(y, whole)
    assert torch.equal(model.past, past)
    torch.testing.assert_close(cut_grads, grads)
    model.zero_states()
    assert exact(stepped(model, x), whole)
    assert torch.equal(model.past, past)


@every_kind
def test_the_past_moves_but_for_half_precision_and_is_not_written_to(kind: str) -> None:
    model, x = KINDS[kind](), sequence(3, *SHAPE)
    expected = stepped(model, x)
    model.zero_states()
    for step, wanted in zip(x.clone(), expected, strict=True):
        y = model(step)
        assert torch.equal(y, wanted)
        y.mul_(0.0)
        step.mul_(0.0)
    assert model.float().past.dtype == torch.float32
    with torch.no_grad():
        y = model.half()(x[0].half())
    assert y.dtype == torch.float16
    assert model.past.dtype == torch.float32
    assert model.to_empty(device="cpu").past is None


@every_kind
def test_sigma_is_saved(kind: str) -> None:
    model, other = KINDS[kind](sigma=3.0), KINDS[kind]()
    model.sigma = 0.75
    saved = copy.deepcopy(model.state_dict())
    other.load_state_dict(saved)
    x = sequence(5, *SHAPE)
    assert torch.equal(tt.unroll(other, x), tt.unroll(model, x, from_rest=True))
    again = KINDS[kind]()
    again.load_state_dict(saved, assign=True)
    assert saved["sigma"] == other.sigma == again.sigma == 0.75
    again.sigma = 0.5  # another tensor than before
    assert again.state_dict()["sigma"] == 0.5
    del saved["sigma"]
    with pytest.raises(RuntimeError, match=r"Missing key.*sigma"):
        again.load_state_dict(saved)
    assert again.load_state_dict(saved, strict=False).missing_keys == ["sigma"]
    assert again.sigma == 0.5


@every_kind
def test_sigma_follows_whatever_writes_to_its_buffer(kind: str) -> None:
    model: Any = nn.Sequential(KINDS[kind](sigma=3.0))
    x, mean, by_values = sequence(5, *SHAPE), AveragedModel(model), copy.deepcopy(model)
    model[0].sigma = 0.0
    mean.update_parameters(model)
    for name, value in by_values.state_dict().items():
        value.copy_(model.state_dict()[name])
    for other in (mean, by_values):
        assert torch.equal(tt.unroll(other, x, from_rest=True), tt.unroll(model, x, from_rest=True))
    assert by_values[0].sigma == 0.0
    model[0].sigma = 0.3  # a buffer rounds it
    assert copy.deepcopy(model)[0].sigma == 0.3


def test_sigma_in_functional_calls() -> None:
    wide, sharp, x = axonal(sigma=3.0), axonal(sigma=0.0), sequence(1, 2, IN)[0]
    values = [each.state_dict() for each in (wide, sharp)]
    expected = [wide(x).detach(), sharp(x).detach()]

    def run(named: dict[str, Tensor]) -> Tensor:
        wide.zero_states()
        y: Tensor = functional_call(wide, named, (x,))
        wide.zero_states()
        return y

    assert all(map(torch.equal, map(run, values * 2), expected * 2))
    alike = {name: torch.stack([value, value]) for name, value in values[1].items()}
    assert torch.equal(vmap(run)(alike)[0], expected[1])
    assert wide.sigma == 3.0
    differing = {name: torch.stack([values[0][name], values[1][name]]) for name in alike}
    with pytest.raises(ValueError, match=r"several models in one vmap, whose sigma .*\[3.0, 0.0\]"):
        vmap(run)(differing)


def test_a_tensor_that_is_assigned_to_sigma_is_copied() -> None:
    model: Any = axonal()
    schedule = torch.linspace(4.0, 0.5, 8)
    for value in schedule:
        model.sigma = value
    model.round_()
    assert model.sigma == 0.0
    assert schedule[-1] == 0.5
    for wrong, error, message in (
        (torch.tensor(-1.0), ValueError, r"sigma must be finite and not negative, got -1\.0"),
        (torch.ones(2), RuntimeError, "a Tensor with 2 elements cannot be converted"),
        (nn.Parameter(torch.ones(())), TypeError, "sigma is not learned"),
    ):
        with pytest.raises(error, match=message):
            model.sigma = wrong
    assert (model.sigma, model.state_dict()["sigma"]) == (0.0, 0.0)
    model.sigma = 0.5
    parametrize.register_parametrization(model, "raw_delay", nn.Identity())
    with pytest.raises(ValueError, match="parametrized delays, which cannot be written"):
        model.round_()
    assert model.sigma == 0.5


@pytest.mark.parametrize("largest", [1, 3])
@pytest.mark.parametrize("outside", [0.0, 0.7])
def test_gradient_of_a_delay_at_an_end(largest: int, outside: float) -> None:
    """It is the mean of both sides, of which the one outside is flat; the same for every kind."""
    x = sequence(8, 2, 1)
    for end in (0, largest):
        one = snn.Delay(1, max_delay=largest, delay=float(end)).double()
        each = snn.DelayedLinear(1, 1, bias=False, max_delay=largest, delay=float(end)).double()
        nn.init.ones_(each.linear.weight)
        models: tuple[Any, ...] = one, each
        for model in models:
            with torch.no_grad():
                model.raw_delay += outside if end else -outside
            weighted_sum(tt.unroll(model, x)).backward()
        inside = shifted(x, 1) - x if end == 0 else shifted(x, largest) - shifted(x, largest - 1)
        expected = weighted_sum(inside) / 2
        for model in models:
            torch.testing.assert_close(model.raw_delay.grad.sum(), expected)


def test_a_product_that_does_more_than_its_weight_is_refused() -> None:
    for change in (
        lambda model: prune.l1_unstructured(model.linear, "weight", 0.5),
        lambda model: setattr(model, "linear", DoubledLinear(IN, OUT).double()),
    ):
        model = synaptic()
        change(model)
        with pytest.raises(ValueError, match="reads the weight of its linear, and does not call"):
            tt.unroll(model, sequence(3, 2, IN))
    model = synaptic()
    prune.remove(prune.l1_unstructured(model.linear, "weight", 0.5), "weight")
    tt.unroll(model, sequence(3, 2, IN))


def test_sigma_survives_a_failed_load(tmp_path: Any) -> None:
    tt.save(nn.Sequential(axonal(sigma=2.0), snn.LIF(IN).double()), tmp_path / "model.safetensors")
    model = nn.Sequential(axonal(sigma=0.5), snn.LIF(IN).double())
    model[1].register_load_state_dict_post_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tt.load(tmp_path / "model.safetensors", model)
    assert model[0].sigma == model[0].state_dict()["sigma"] == 0.5


def test_sigma_follows_no_dtype_and_no_device() -> None:
    model = snn.Delay(2, max_delay=3, sigma=0.3)
    model.half().double()
    assert model.sigma == 0.3
    assert model.state_dict()["sigma"] == 0.3
    meta = model.to("meta")
    meta.sigma = 0.7
    assert meta.to_empty(device="cpu").state_dict()["sigma"] == 0.7


LAGS = torch.tensor([-6, -2, 2, 6])


def pairs(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs of spikes in two channels; the class is the lag of the second."""
    target = torch.randint(len(LAGS), (batch,), generator=generator)
    x, samples = torch.zeros(48, batch, 2), torch.arange(batch)
    for _ in range(3):
        first = torch.randint(8, 40, (batch,), generator=generator)
        x[first, samples, 0] = 1
        x[first + LAGS[target], samples, 1] = 1
    return x, target


def accuracy_on_pairs(learned: bool, seed: int) -> float:
    """Train a network of neurons without memory, and return its accuracy with whole delays."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    options: Any = {} if learned else {"delay": 0.0, "learnable": False}
    hidden = snn.DelayedLinear(2, 24, max_delay=8, sigma=4.0 if learned else 0.0, **options)
    net = nn.Sequential(hidden, snn.LIF(24, beta=0.05, learn_beta=False), nn.Linear(24, len(LAGS)))
    optimizer = torch.optim.Adam(tt.param_groups(net, 0.0, lr=0.01, neuron_lr_scale=10.0))
    with torch.no_grad():
        hidden.linear.weight.copy_(0.6 + 0.1 * torch.randn(24, 2))
        hidden.linear.bias.zero_()
    for step in range(300):
        if learned and step < 200:
            hidden.sigma = 4.0 * 0.1 ** (step / 200)
        if step == 200:  # the rest learns on with whole delays
            hidden.round_()
            hidden.raw_delay.requires_grad_(False)
        x, target = pairs(64, generator)
        loss = nn.functional.cross_entropy(tt.unroll(net, x, from_rest=True).sum(0), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, target = pairs(1000, generator)
    with torch.no_grad():
        found = tt.unroll(net, x, from_rest=True).sum(0).argmax(-1)
    return float((found == target).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_task_made_of_delays_is_solved_with_learned_delays_and_not_without(seed: int) -> None:
    assert accuracy_on_pairs(True, seed) > 0.95
    assert accuracy_on_pairs(False, seed) < 0.35  # a quarter is what guessing reaches


def _write_data(layer: Any) -> None:
    layer.raw_delay.data.fill_(1.25)  # nothing counts that


def _write_weight(layer: Any) -> None:
    next(each for each in layer.parameters() if each.ndim == 2).data.mul_(2)


def _replace(layer: Any) -> None:
    layer.raw_delay = nn.Parameter(torch.full_like(layer.raw_delay, 2.0))


def _parametrize(layer: Any) -> None:
    parametrize.register_parametrization(layer, "raw_delay", nn.ReLU())


CHANGES: dict[str, Any] = {
    "data": _write_data,
    "weight": lambda layer: None if isinstance(layer, snn.Delay) else _write_weight(layer),
    "replaced": _replace,
    "sigma": lambda layer: setattr(layer, "sigma", 0.7),
    "sigma's buffer": lambda layer: layer._buffers["sigma"].fill_(0.9),
    "rounded": lambda layer: layer.round_(),
    "parametrized": _parametrize,
    "float32": lambda layer: layer.float(),
    "training": lambda layer: layer(torch.ones(2, IN).double()).sum().backward(),
    "inference mode": lambda layer: torch.inference_mode()(layer)(torch.ones(2, IN).double()),
}


class OwnKernel(snn.DelayedLinear):
    """Its kernel follows from more than the delays and the weight."""

    gain = 1.0

    def kernel_of(self, dtype: torch.dtype) -> Tensor:
        return self.gain * super().kernel_of(dtype)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("build", [axonal, synaptic])
def test_steps_without_a_graph_see_every_change(build: Any, change: str) -> None:
    layer = build()
    x = torch.rand(3, 2, IN, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        for each in x:
            layer(each)
    CHANGES[change](layer)
    x = x.to(layer.raw_delay.dtype)
    tt.zero_states(layer)
    expected = tt.unroll(layer, x, from_rest=True)
    for model in (layer, copy.deepcopy(layer)):
        with torch.no_grad():
            stepped = torch.stack([model(each) for each in x])
        tt.zero_states(model)
        torch.testing.assert_close(stepped, expected.detach())


def test_what_a_kernel_of_ones_own_reads_and_what_a_hook_does_count_at_every_step() -> None:
    own, hooked = OwnKernel(IN, OUT, max_delay=D, bias=False), synaptic()
    x = torch.ones(1, IN)
    with torch.no_grad():
        first = own(x)
        hooked(x.double())
        own.gain = 2.0
        tt.zero_states(own)
        assert torch.equal(own(x), 2 * first)
        prune.identity(hooked.linear, "weight")
        with pytest.raises(ValueError, match="reads the weight of its linear"):
            hooked(x.double())

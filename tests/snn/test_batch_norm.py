import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import examples, sequence, stepped, weighted_sum
from tests.refusals import unchanged
from tests.unrolling.models import Whole, gradcheck
from tracetorch import snn

K = 4  # steps with values of their own


def bntt(dim: int = -1, seed: int = 0, **options: Any) -> snn.BatchNormThroughTime:
    """Build a layer with random values, in float64."""
    layer = snn.BatchNormThroughTime(3, dim, **{"steps": K, "bias": True, **options}).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*layer.parameters(), layer.norm.running_mean):
            tensor.add_(torch.randn(tensor.shape, generator=generator))
        layer.norm.running_var.add_(torch.rand(K, 3, generator=generator))
    return layer


class Norms(nn.Module):
    """The reference: one of PyTorch's norms for each step, called in turn."""

    def __init__(self, layer: snn.BatchNormThroughTime, kind: type[nn.Module]) -> None:
        super().__init__()
        norms = [kind(3, eps=layer.norm.eps, momentum=layer.norm.momentum) for _ in range(K)]
        self.norms = nn.ModuleList(norms).double()
        for k, norm in enumerate(self.norms):
            values = {name: t[k] for name, t in layer.norm.state_dict().items() if t.ndim}
            norm.load_state_dict({**norm.state_dict(), **values})

    def forward(self, x: Tensor) -> Tensor:
        steps = enumerate(x.unbind())
        return torch.stack([self.norms[min(t, K - 1)](step) for t, step in steps])

    def values(self, name: str) -> Tensor:
        return torch.stack([getattr(norm, name) for norm in self.norms])

    def gradient(self, name: str) -> Tensor:
        grads = [getattr(norm, name).grad for norm in self.norms]
        return torch.stack([torch.zeros(3) if g is None else g for g in grads]).double()


@pytest.mark.parametrize("T", [1, K, K + 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dim", "kind", "shape"),
    [
        (-1, nn.BatchNorm1d, (5, 3)),
        (1, nn.BatchNorm1d, (5, 3, 4)),
        (-3, nn.BatchNorm2d, (2, 3, 2, 3)),
        (-4, nn.BatchNorm3d, (2, 3, 1, 2, 2)),
    ],
)
@pytest.mark.parametrize("by", ["layer", "step"])
def test_norm_of_each_step(by, dim, kind, shape, training, T):
    bias = T != K
    layer = bntt(dim, eps=1e-3, momentum=0.3, bias=bias).train(training)
    reference = Norms(layer, kind).train(training)
    x, other = (sequence(T, *shape).requires_grad_() for _ in range(2))
    y, expected = tt.unroll(layer, x, by=by), reference(other)
    torch.testing.assert_close(y, expected)
    weighted_sum(y).backward()
    weighted_sum(expected).backward()
    torch.testing.assert_close(x.grad, other.grad)
    for name in ("weight", "bias")[: 1 + bias]:
        grad = getattr(layer.norm, name).grad
        torch.testing.assert_close(grad, reference.gradient(name), msg=name)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer.norm, name), reference.values(name), msg=name)
    counted = torch.bincount(torch.arange(T).clamp(max=K - 1), minlength=K)
    assert torch.equal(layer.norm.num_batches_tracked, counted * training)
    assert layer.position.shape == (shape[0], *[1] * (len(shape) - 1))
    assert set(layer.position.flatten().tolist()) == {min(T, K)}


def test_a_frozen_norm_keeps_its_statistics_in_training() -> None:
    layer, evaluated, x = bntt(), bntt().eval(), sequence(K, 1, 3)  # one sample has no statistics
    layer.norm.eval()
    before = [buffer.clone() for buffer in layer.norm.buffers()]
    assert layer.training
    for by in ("layer", "step"):
        y = tt.unroll(layer, x, by=by, from_rest=True)
        assert torch.equal(y, tt.unroll(evaluated, x, by=by, from_rest=True))
    assert all(map(torch.equal, before, layer.norm.buffers()))
    layer.train()
    assert layer.uses_batch_statistics


@pytest.mark.parametrize("bias", [True, False])
def test_conversion_to_synchronised_norms_changes_nothing(bias: bool) -> None:
    layer, twin, x = bntt(bias=bias), bntt(bias=bias), sequence(K + 1, 4, 3)
    nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    assert isinstance(layer.norm, nn.SyncBatchNorm)
    for training in (True, False):
        layer.train(training), twin.train(training)
        assert torch.equal(*(tt.unroll(each, x, from_rest=True) for each in (layer, twin)))
    for name, buffer in twin.norm.named_buffers():
        assert torch.equal(layer.norm.get_buffer(name), buffer)


def test_tools_of_pytorch_find_it() -> None:
    layer, batches = bntt(), [sequence(K + 1, 4, 3, seed=seed) for seed in range(3)]
    tt.unroll(layer, 100 + batches[0], from_rest=True)
    torch.optim.swa_utils.update_bn(batches, Whole(layer).eval())
    first = torch.stack([batch[:-2] for batch in batches])  # of steps that share with no other
    torch.testing.assert_close(layer.norm.running_mean[:-1], first.mean((0, 2)))
    last = torch.cat([batch[-2:] for batch in batches])
    torch.testing.assert_close(layer.norm.running_mean[-1], last.mean((0, 1)))
    assert layer.norm.momentum == 0.1
    frozen = [m.eval() for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert frozen == [layer.norm]
    assert not layer.uses_batch_statistics

    torch.func.replace_all_batch_norm_modules_(layer)
    y = tt.unroll(layer.eval(), batches[0], from_rest=True)  # by its batch, for none is tracked
    torch.testing.assert_close(y.mean(1), layer.norm.bias[[0, 1, 2, 3, 3][: K + 1]])


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training: bool) -> None:
    gradcheck(bntt(momentum=0.0).train(training), sequence(K + 1, 4, 3), by="step")


@pytest.mark.parametrize("training", [True, False])
@given(cuts=st.lists(st.integers(0, 3), min_size=1, max_size=5))
@examples(10)
def test_stream_is_the_sequence_cut_anywhere(training: bool, cuts: list[int]) -> None:
    x = sequence(sum(cuts) + 2, 4, 3)
    results = []
    for parts in ([len(x)], [*cuts, 2], None):
        layer = bntt().train(training)
        if parts is None:
            y = stepped(layer, x)
        else:
            y = torch.cat([layer.forward_sequence(part)[0] for part in x.split(parts)])
        grads = torch.autograd.grad(weighted_sum(y), list(layer.parameters()))
        results.append(([y, layer.position, *layer.norm.buffers()], grads))
    for values, grads in results[1:]:
        torch.testing.assert_close(values, results[0][0], rtol=0, atol=0)
        torch.testing.assert_close(grads, results[0][1])


def network() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), snn.BatchNormThroughTime(5, steps=K), snn.LIF(5))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * 16).round() / 16)
    return net.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"by": "step"}, {"segment": 2}, {"check": True}])
def test_network_by_layer(training: bool, options: Any) -> None:
    x = (8 * sequence(6, 8, 3)).round() / 8
    results = []
    ways: list[Any] = [{}, options]
    for each in ways:
        net = network().train(training)
        y = tt.unroll(net, x, **each)
        weighted_sum(y).backward()
        grads = {name: p.grad for name, p in net.named_parameters()}
        results.append((y, dict(net.named_buffers()), net[1].position, grads))
    torch.testing.assert_close(results[1], results[0])
    assert bool(results[0][0].any())


def test_positions_of_any_length_are_recorded_and_none_is_left() -> None:
    net = network()
    for by in ("layer", "step"):
        _, seen = tt.unroll(net, sequence(K + 2, 2, 3), record="position", by=by, from_rest=True)
        assert seen["1.position"].flatten(1)[:, 0].tolist() == [1, 2, 3, 4, 4, 4]
    for training in (True, False):
        y, _ = net[1].train(training).forward_sequence(torch.ones(0, 2, 5))
        assert y.shape == (0, 2, 5)
    assert net[1].position is None


@pytest.mark.parametrize("run", [tt.unroll, stepped])
def test_samples_restart_by_mask_in_evaluation(run: Any) -> None:
    layer, x = bntt().eval(), sequence(6, 3, 3)
    tt.unroll(layer, x[:2])
    layer.zero_states(where=torch.tensor([False, True, False]))
    y = run(layer, x[2:])
    assert layer.position.flatten().tolist() == [4, 4, 4]
    expected = tt.unroll(layer, x, from_rest=True)[2:]
    expected[:, 1] = tt.unroll(layer, x[2:, 1:2], from_rest=True)[:, 0]
    assert torch.equal(y, expected)


def test_training_needs_samples_at_one_step() -> None:
    net: Any = nn.Sequential(bntt())
    x = sequence(3, 2, 3)
    net(x[0])
    tt.zero_states(net, where=torch.tensor([False, True]))
    with unchanged(net), pytest.raises(ValueError, match=r"'0', .* has samples at different steps"):
        tt.unroll(net, x)
    tt.unroll(net.eval(), x)
    # from the last step on all stand at one
    tt.unroll(net, x)
    net.train()(x[0])


@pytest.mark.slow
def test_compiled_in_training() -> None:
    layer, x = bntt(), sequence(K + 2, 4, 3)
    other = copy.deepcopy(layer)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = [step(each) for each in x]
    torch.testing.assert_close(torch.stack(y), stepped(other, x))
    torch.testing.assert_close(layer.norm.state_dict(), other.norm.state_dict())
    layer.position = torch.arange(4).view(4, 1)
    with pytest.raises(RuntimeError, match="has samples at different steps"):
        step(x[0])


def test_tools_know_the_layer() -> None:
    net = network()
    named = {each["name"]: each["params"] for each in tt.param_groups(net, 0.1)}
    assert any(p is net[1].norm.weight for p in named["biases and norms"])
    rows = {row.path: row for row in tt.metrics.profile(net, sequence(3, 4, 3)).rows}
    assert (rows["1"].kind, rows["1"].shape) == ("BatchNormThroughTime", (5,))
    assert (rows["1.norm"].parameters, rows["1.norm"].shape) == (K * 5, None)
    layer, x = bntt().half(), sequence(1, 2, 3, dtype=torch.float16)
    assert layer(x[0]).dtype == layer.eval()(x[0]).dtype == layer.norm.running_mean.dtype == x.dtype


def test_online_learning_refuses_statistics_of_a_batch() -> None:
    net, x = network(), sequence(2, 4, 3)
    with pytest.raises(ValueError, match=r"0\.weight -> states of 2"):
        tt.online(net, "exact")(x[0])
    net[1].requires_grad_(False)  # its weights have no traces
    learner = tt.online(net.eval(), "exact")
    for step in x:
        learner(step).sum().backward()
    assert [str(path) for path in learner.dropped] == []

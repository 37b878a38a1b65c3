from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from tests.cases import PLACES, sequence, stepped, weighted_sum
from tracetorch import snn


def seeded(model: nn.Module, x: Tensor, **options: Any) -> Any:
    torch.manual_seed(3)
    return tt.unroll(model, x, **options)


@pytest.mark.parametrize(("dim", "shape"), PLACES)
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_mask_is_that_of_the_first_step(dim: int, shape: tuple[int, ...], p: float) -> None:
    layer, x = snn.LockedDropout(3, p, dim), sequence(6, *shape).requires_grad_()
    torch.manual_seed(3)
    mask = nn.functional.dropout(torch.ones(shape, dtype=x.dtype), p)
    for by in ("layer", "step"):
        layer.zero_states()
        y = seeded(layer, x, by=by)
        assert torch.equal(y, x * mask)
        assert torch.equal(layer.mask, mask)
        grads = [torch.autograd.grad(weighted_sum(each), x)[0] for each in (y, x * mask)]
        assert torch.equal(*grads)


def test_evaluation_is_the_identity_and_keeps_the_mask() -> None:
    layer, x = snn.LockedDropout(3).eval(), sequence(5, 2, 3)
    for by in ("layer", "step"):
        assert torch.equal(tt.unroll(layer, x, by=by), x)
        assert layer.mask is None
    layer.train()(x[0])
    mask = layer.mask
    assert torch.equal(tt.unroll(layer.eval(), x), x)
    assert layer.mask is mask
    assert torch.equal(layer.train()(x[0]), x[0] * mask)


def test_in_place_behind_evaluation_does_not_reach_the_input() -> None:
    net, x = nn.Sequential(snn.LockedDropout(3), nn.ReLU(inplace=True)).eval(), sequence(4, 2, 3)
    given = x.clone()
    assert torch.equal(tt.unroll(net, x), given.relu())
    assert torch.equal(x, given)


def test_restarted_samples_draw_another_mask_in_float32() -> None:
    layer, x = snn.LockedDropout(64).half(), torch.ones(3, 64).half()
    before = layer(x)
    layer.zero_states(where=torch.tensor([False, True, False]))
    after = layer(x)
    assert torch.equal(before[::2], after[::2])
    assert not torch.equal(before[1], after[1])
    assert set(after[1].tolist()) == {0.0, 2.0}
    assert (after.dtype, layer.mask.dtype) == (torch.float16, torch.float32)


def test_segments_repeat_the_mask() -> None:
    net = nn.Sequential(nn.Linear(3, 3), snn.LockedDropout(3), snn.LIF(3)).double()
    x = sequence(7, 4, 3)
    grads = []
    for segment in (None, 3):
        tt.zero_states(net)
        y = seeded(net, x, segment=segment)
        grads.append([y, *torch.autograd.grad(weighted_sum(y), list(net.parameters()))])
    torch.testing.assert_close(grads[0], grads[1])


def test_recurrent_dropout() -> None:
    connection = nn.Sequential(nn.Linear(3, 3), snn.LockedDropout(3))
    layer = snn.Recurrent(snn.LIF(3), connection).double()
    x = sequence(6, 2, 3)
    y = seeded(layer, x, from_rest=True)
    torch.manual_seed(3)
    assert torch.equal(stepped(layer, x), y)
    assert connection[1].mask.shape == (2, 3)
    layer.zero_states()
    assert connection[1].mask is None


def test_model_is_checked_and_recorded() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 8), snn.LockedDropout(8), snn.LIF(8))
    x = sequence(5, 2, 3, dtype=torch.float32)
    tt.unroll(net, x, check=True, from_rest=True)
    _, seen = tt.unroll(net, x, record=["mask", "1.output"])
    assert torch.equal(seen["1.mask"], net[1].mask.expand(5, 2, 8))
    for by in ("layer", "step"):
        with pytest.raises(ValueError, match=r"'1.mask' was seen 0 times"):
            tt.unroll(net.eval(), x, record="mask", by=by, from_rest=True)


def test_compiled_step_keeps_the_mask() -> None:
    layer, x = snn.LockedDropout(8), sequence(3, 2, 8, dtype=torch.float32)
    step = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = [step(each) for each in x]
    assert torch.equal(torch.stack(y), x * layer.mask)
    layer.eval()
    assert torch.equal(step(x[0]), x[0])


def test_online_learning_drops_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snn.LockedDropout(4), snn.LIF(4, beta_rank=0)).double()
    x = sequence(5, 2, 3)
    torch.manual_seed(3)
    learner = tt.online(net, "exact")
    for step in x:
        learner(step).square().sum().backward()
    assert learner.dropped == ()
    grads = [p.grad.clone() for p in net.parameters()]
    learner.zero_states()
    net.zero_grad()
    seeded(net, x).square().sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in net.parameters()])

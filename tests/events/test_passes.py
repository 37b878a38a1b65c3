"""Events within passes by layer: what stays dense, what is left behind, and in processes."""

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import tracetorch as tt
from tests.cases import through_save
from tests.events.cases import dyadic, event_passes, events, observed
from tests.networks import Net
from tests.scale_out.processes import run_together
from tests.unrolling.models import Whole
from tracetorch import fuse, snn
from tracetorch.events import mode, observed_products, requested_mode
from tracetorch.events.passes import event_modules
from tracetorch.snn.passes import current_pass

T, B = 12, 20


def net() -> nn.Sequential:
    torch.manual_seed(0)
    first, last = dyadic(nn.Linear(40, 48)), dyadic(nn.Linear(48, 5))
    return nn.Sequential(first, snn.LIF(48), last, snn.Readout(5)).double()


def model_and_input() -> tuple[Any, Tensor]:
    return net(), events(T, B, 40, density=0.05)


def linear_and_input() -> tuple[nn.Linear, Tensor]:
    return nn.Linear(40, 8), events(30, 40, density=0.05).float()


def run(
    model: nn.Module, x: Tensor, name: str, **options: Any
) -> tuple[dict[str, Tensor], list[bool]]:
    """Output, states, trajectories and every gradient by name; and which products used events."""
    model.zero_grad()
    tt.zero_states(model)
    x = x.clone().requires_grad_()
    with mode(name), observed_products() as products:
        y = tt.unroll(model, x, **options)
        y, seen = y if "record" in options else (y, {})
        y.square().sum().backward()
    found = {"y": y.detach(), "x": x.grad, **tt.get_states(model), **seen}
    found |= {name: p.grad for name, p in model.named_parameters()}
    return found, [product.events for _, product in products]


@pytest.mark.parametrize(
    "options",
    [{}, {"segment": 5}, {"record": ["output", "input", "mem"]}, {"check": True}, {"time_dim": 1}],
    ids=str,
)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5])
def test_equals_the_dense_pass(density: float, options: dict[str, Any]) -> None:
    model, x = net(), events(T, B, 40, density=density)
    if options.get("time_dim"):
        x = x.movedim(0, 1).contiguous()
    expected, dense = run(model, x, "never", **options)
    found, products = run(model, x, "always", **options)
    assert not dense
    assert products
    assert all(products)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name in ("y", "1.mem", "1.output"):
        assert torch.equal(found.get(name, x), expected.get(name, x)), name


def test_hooks_see_every_call() -> None:
    model, x = model_and_input()
    run(model, x, "never")  # the first time by step too
    seen: list[str] = []
    layer = model[2]
    layer.register_forward_pre_hook(lambda m, a: seen.append("before"))
    layer.register_forward_pre_hook(lambda m, a: (a[0] * 2,))
    layer.register_forward_hook(lambda m, a, y: seen.append("after"))
    layer.register_forward_hook(lambda m, a, y: y + 1)
    layer.register_full_backward_pre_hook(lambda m, g: seen.append("backward before"))
    layer.register_full_backward_hook(lambda m, gi, go: seen.append("backward after"))
    expected, _ = run(model, x, "never")
    found, products = run(model, x, "always")
    assert products == [True, True]
    assert seen == ["before", "after", "backward before", "backward after"] * 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_functional_call() -> None:
    model, x = model_and_input()
    swapped = {f"model.{n}": (2 * p.detach()).requires_grad_() for n, p in model.named_parameters()}
    results = []
    for name in ("never", "always"):
        with mode(name):
            y = torch.func.functional_call(Whole(model), swapped, x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(swapped.values()))))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


class Subclass(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + 1


def own_forward(layer: Any) -> nn.Module:
    layer.forward = lambda x: nn.Linear.forward(layer, x) + 1
    return layer


OTHERS: dict[str, Callable[[Any], nn.Module]] = {
    "subclass": lambda layer: Subclass(40, 48).double(),
    "parametrized": parametrizations.weight_norm,
    "own forward": own_forward,
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_other_layers_stay_dense(change: Callable[[Any], nn.Module]) -> None:
    model, x = model_and_input()
    model[0] = change(model[0])
    model[2] = nn.Identity()
    expected, _ = run(model[:3], x, "never")
    found, products = run(model[:3], x, "always")
    assert products == []
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_inputs_that_stay_dense() -> None:
    layer, x = linear_and_input()
    for name, convert, given in (
        ("half", layer.half, x.half()),
        ("bfloat16", layer.bfloat16, x.bfloat16()),
        ("strided", layer.float, x.t().contiguous().t()),
        ("no rows", layer.float, x[:0]),
        ("one row", layer.float, x[0]),
        ("subclass", layer.float, x.as_subclass(type("Mine", (Tensor,), {}))),
        ("meta", lambda: layer.to("meta"), x.to("meta")),
    ):
        convert()
        with mode("always"):
            y, (product,) = observed(layer, given)
        assert (product.events, bool(product.reason)) == (False, True), name
        assert type(y) is type(given), name


def test_wrong_inputs_raise_what_pytorch_raises() -> None:
    layer = nn.Linear(40, 8)
    for x in (torch.zeros(3, 39), torch.zeros(3, 40).double()):
        messages = []
        for name in ("never", "always"):
            with mode(name), event_passes((layer,)), pytest.raises(RuntimeError) as error:
                layer(x)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


# PyTorch's own, in forward mode, and of torch.jit.trace itself
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_modes_and_transforms_stay_dense() -> None:
    layer, x = linear_and_input()

    class Seen(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    expected = layer(x)
    with mode("always"), event_passes((layer,)), observed_products() as products:
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 30 * 40 * 8
        with Seen():
            layer(x)
        assert "linear" in names
        y = torch.func.vmap(layer)(x.view(5, 6, 40))
        torch.testing.assert_close(y.view(30, 8), expected)
        tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]
        torch.testing.assert_close(tangent, layer.weight.sum(1).expand(30, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        traced = torch.jit.trace(layer, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected)
    assert not any(product.events for _, product in products)
    assert len(products) >= 5


def test_compiled_function_inside_the_model() -> None:
    layer, x = linear_and_input()
    graphs = torch._dynamo.testing.CompileCounter()
    called = torch.compile(lambda x: layer(x), backend=graphs, fullgraph=True)
    for _ in range(3):
        with mode("always"), event_passes((layer,)):
            y = called(x)
        torch.testing.assert_close(y, layer(x))
    assert graphs.frame_count == 1


def test_a_compiled_part_or_the_eager_backend_keeps_the_model_dense() -> None:
    model = net()
    model[0].compile(backend="eager")
    assert event_modules(model.modules()) == ()
    model, x = model_and_input()
    with fuse.backend("eager"):
        _, products = run(model, x, "always")
    assert products == []


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left(fails: bool) -> None:
    model, x = model_and_input()
    before = dict(vars(model[0]))

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        run = current_pass()  # while the first steps run by step there are none
        assert ("forward" in vars(model[0])) is (run is not None and run.folded)
        if fails:
            raise ArithmeticError("it fails")
        return x

    model.append(Net(forward))
    with mode("always"), pytest.raises(ArithmeticError) if fails else nullcontext():
        tt.unroll(model, x)
    assert vars(model[0]) == before


def test_copies_made_within_a_pass() -> None:
    copies: list[nn.Module] = []

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        pickled: Callable[[Any], Any] = lambda layer: pickle.loads(pickle.dumps(layer))  # noqa: E731
        copies.extend(way(model[0]) for way in (copy.copy, copy.deepcopy, pickled, through_save))
        return x

    model, x = model_and_input()
    model.append(Net(forward))
    with mode("always"):
        tt.unroll(model, x)
    for copied in copies:
        assert vars(copied).keys() == vars(model[0]).keys()
        assert torch.equal(copied(x), model[0](x))


def test_a_layer_that_threads_share() -> None:
    shared, x = dyadic(nn.Linear(40, 48)), events(T, B, 40, density=0.05)
    models = [nn.Sequential(shared, snn.LIF(48).double()) for _ in range(4)]
    expected = tt.unroll(models[0], x, from_rest=True)

    def work(model: nn.Module) -> None:
        for _ in range(20):
            with mode("always"):
                assert torch.equal(tt.unroll(model, x, from_rest=True), expected)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, models)) == [None] * 4
    assert "forward" not in vars(shared)


def test_auto_follows_the_density() -> None:
    layer, x = nn.Linear(256, 256), torch.zeros(2000, 256)
    for density, by_events in ((0.0, True), (0.02, True), (0.9, False), (1.0, False)):
        x[:, : int(256 * density)] = 1
        _, (product,) = observed(layer, x)
        assert product.density == pytest.approx(density, abs=0.01)
        assert (product.reason is None) == product.events == by_events
    _, (product,) = observed(layer, x[:2] * 0)
    assert product.reason == "too small for events"
    # an input whose sampled rows are silent is counted, and found busy
    x[torch.arange(16) * 2_654_435_761 % 2000] = 0
    y, (product,) = observed(layer, x)
    assert (product.events, product.density) == (False, 0.992)
    assert torch.equal(y, layer(x))


def test_modes() -> None:
    mode("always")
    assert requested_mode() == "always"
    mode("auto")
    with mode("never"):
        assert requested_mode() == "never"
    assert requested_mode() == "auto"
    with pytest.raises(ValueError, match=r"no mode of events is called 'sparse'\. There are auto"):
        mode("sparse")


# Under DistributedDataParallel in two processes, against one process


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    tt.unroll(model, x).square().mean().backward()
    return {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}


def job(folder: str, rank: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    share = events(T, B, 40, density=0.1).chunk(2, 1)[rank].contiguous()
    with mode("always"), observed_products() as products:
        found = gradients(DistributedDataParallel(net()), share)
    assert [product.events for _, product in products] == [True, True]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_one(tmp_path: Path) -> None:
    run_together([["-m", "tests.events.test_passes", str(tmp_path), str(n)] for n in range(2)])
    with mode("never"):
        expected = gradients(net(), events(T, B, 40, density=0.1))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


if __name__ == "__main__":
    job(sys.argv[1], int(sys.argv[2]))

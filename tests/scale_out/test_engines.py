"""Compare gradients, parameters and states of two processes with those of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import tracetorch as tt
from tests.cases import few
from tests.scale_out.jobs import (
    ENGINES,
    FAST_WAYS,
    KINDS,
    OF_BLOCKS,
    WAYS,
    WORLD,
    data,
    gradients,
    net,
    of_kind,
    train,
)
from tests.scale_out.processes import run_together
from tests.unrolling.models import By, Whole

Results = list[dict[str, dict[str, Tensor]]]

TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason="needs two GPUs")
BACKENDS = ["gloo", pytest.param("nccl", marks=[pytest.mark.gpu, TWO_GPUS])]
FOLDER: list[Path] = []  # where the processes have written


@pytest.fixture(scope="module", params=BACKENDS)
def results(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("processes")
    FOLDER.append(folder)
    job, rest = ["-m", "tests.scale_out.jobs", str(folder)], [str(WORLD), request.param]
    rest += ["every"] * ("not slow" not in request.config.option.markexpr)
    run_together([[*job, str(rank), *rest] for rank in range(WORLD)])
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def reference(batch: int, way: str = "by layer") -> dict[str, Tensor]:
    x, y = data(batch)
    model = net()
    cross_entropy(tt.unroll(model, x, **WAYS[way]).mean(0), y).backward()
    return gradients(model)


@pytest.mark.parametrize("way", few(WAYS, *FAST_WAYS))
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wrapped", ["whole", "model"])
def test_gradients_equal_those_of_one_process(results, wrapped, engine, way) -> None:
    name = f"{wrapped}/{engine}/{way}"
    if name not in results[0]:
        assert name.startswith("model/DDP/in segments"), "refused; tests/unrolling/test_segments.py"
        return
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank][name], reference(4), msg=f"process {rank}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", few(OF_BLOCKS, "DDP", "FSDP of every block"))
def test_memories_of_every_kind_beside_engines(results: Results, engine: str, kind: str) -> None:
    x, _ = data()
    for name in (each for each in results[0] if each.startswith(f"{kind}/{engine}/")):
        whole = Whole(of_kind(kind), **WAYS[name.split("/")[2]])
        outputs = [whole(share) for share in x.split(2, 1)]
        sum(y.square().sum() / WORLD for y in outputs).backward()
        for rank in range(WORLD):
            y = outputs[rank].detach()
            expected = {**gradients(whole), "the output": y, "the next": y}
            torch.testing.assert_close(results[rank][name], expected)


def test_processes_share_the_noise_of_a_seed_and_draw_their_own(results: Results) -> None:
    one, other = (results[rank]["noise"] for rank in range(WORLD))
    assert torch.equal(one["1"], other["1"])
    assert not (one["None"] == other["None"]).any()


def test_a_training_goes_on_in_another_number_of_processes(results: Results) -> None:
    x, y = data()

    first, second = Whole(net()), Whole(net())
    train(first, torch.optim.Adam(first.parameters(), lr=0.05), x, y, 4)
    optimizer = torch.optim.Adam(second.parameters(), lr=0.05)
    parts = torch.load(FOLDER[-1] / "trained", weights_only=True)
    second.load_state_dict(parts["model"])
    optimizer.load_state_dict(parts["optimizer"])
    train(second, optimizer, x, y, 2)
    torch.testing.assert_close(second.state_dict(), first.state_dict())


def test_unequal_shares_and_states_of_before_are_those_of_the_whole(results: Results) -> None:
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["unequal"], reference(5))
    x, _ = data()
    model = net()
    tt.unroll(model, x)
    for n, value in tt.get_states(model).items():
        torch.testing.assert_close(torch.cat([each["carried in"][n] for each in results]), value)


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_after_training(results: Results, engine: str) -> None:
    x, y = data()
    whole = Whole(net())
    train(whole, torch.optim.SGD(whole.parameters(), lr=0.5, momentum=0.9), x, y, 3)
    for rank in range(WORLD):
        expected = {n: p.detach() for n, p in whole.model.named_parameters()}
        torch.testing.assert_close(results[rank][f"trained/{engine}"], expected)


@pytest.mark.parametrize("way", ["by layer", "by step"])
@pytest.mark.parametrize("engine", ENGINES)
def test_each_process_has_the_states_of_its_own_samples(results, engine, way) -> None:
    x, _ = data()
    model = net()
    with torch.no_grad():
        tt.unroll(model, x[:3], **WAYS[way])
        tt.zero_states(model, where=torch.tensor([True, False, False, False]))
        out = tt.unroll(model, x[3:], **WAYS[way])
    shares = [results[rank][f"stream/{engine}/{way}"] for rank in range(WORLD)]
    for n, value in {**tt.get_states(model), "the output": out}.items():
        joined = torch.cat([share[n] for share in shares], dim=-2)
        torch.testing.assert_close(joined, value, msg=n)


def test_states_are_no_parameters_and_outputs_no_views() -> None:
    model = net()
    tt.unroll(model, data()[0])
    assert not set(tt.get_states(model)) & set(model.state_dict())
    held = {id(t) for t in (*model.parameters(), *model.buffers())}
    assert not held & {id(state) for state in tt.get_states(model, detach=False).values()}
    # FSDP registers its hook on a layer's output, and loses it if a view is changed in place.
    seen: list[Tensor] = []
    model = net()
    tt.unroll(model, data()[0], from_rest=True)  # the first run calls it more often
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, out: seen.append(out))
    tt.unroll(model, data()[0])
    assert len(seen) == 6
    assert not any(out._is_view() for out in seen)


@pytest.mark.parametrize(("by", "grad"), [("layer", True), ("layer", False), ("step", False)])
def test_parameter_memory_can_be_freed_after_a_pass(by: By, grad: bool) -> None:
    """FSDP frees parameters between two passes."""
    model = net()
    with torch.set_grad_enabled(grad):
        y = tt.unroll(model, data()[0], by=by)
    if grad:
        y.sum().backward()
    for p in model.parameters():
        p.untyped_storage().resize_(0)


def test_default_ranks_give_no_scalar_parameters_and_data_parallel_is_refused() -> None:
    """FSDP2 refuses parameters of rank 0, as docs/use/scale_out.md says; the default rank is 1."""
    assert all(p.ndim for p in net().parameters())
    assert any(p.ndim == 0 for p in tt.snn.LIF(3, beta_rank=0).parameters())
    with pytest.raises(RuntimeError, match="Use DistributedDataParallel, one process per device"):
        net().out._replicate_for_data_parallel()

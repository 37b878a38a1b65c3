"""Functions that need a whole model, on one whose parameters are sharded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import tracetorch as tt
from tests.cases import sequence
from tests.networks import Listed
from tests.scale_out.jobs import data, net, shard

WHOLE = StateDictOptions(full_state_dict=True)


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = f"file://{tmp_path_factory.mktemp('group') / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    with tt.fuse.backend("eager"):  # no kernels are compiled
        yield
    dist.destroy_process_group()


def after_a_pass(model: nn.Module) -> nn.Module:
    """Return a sharded model whose outermost parameters are whole for the moment."""
    shard(model)
    tt.unroll(model, data()[0])
    tt.zero_states(model)
    return model


def distributed(placement: Any) -> Callable[[nn.Module], nn.Module]:

    def apply(model: nn.Module) -> nn.Module:
        mesh = init_device_mesh("cpu", (1,))
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                parameter = nn.Parameter(distribute_tensor(p.data, mesh, [placement]))
                module.register_parameter(name, parameter)
            for name, b in module.named_buffers(recurse=False):
                module.register_buffer(name, distribute_tensor(b, mesh, [placement]))
        return model

    return apply


SHARDED: dict[str, Callable[[nn.Module], Any]] = {
    "FSDP": fully_shard,
    "FSDP of every layer": shard,
    "FSDP after a pass": after_a_pass,
    "tensor parallel": distributed(Shard(0)),
    "replicated": distributed(Replicate()),
    "hidden": lambda model: Listed(shard(model)),  # in a list, where PyTorch does not find it
}


NEEDS_WHOLE = """
    tt.save(model, path / "new")
    tt.load(path / "old", model)
    tt.metrics.profile(model, x)
    tt.diagnose(model, data(), lambda y, t: nn.functional.cross_entropy(y[-1], t))
    tt.export.step(model, x[0])
    tt.export.sequence(model, x)
    tt.export.onnx(model, path / "new", x[0])
    tt.init.calibrate_(model, x)
    tt.init.fluctuation_(model)
    tt.init.tdbn_(model, x)
    tt.init.identity_(model)
    tt.nir.save(model, path / "new", (3,))
"""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("call", NEEDS_WHOLE.strip().splitlines())
@pytest.mark.parametrize("kind", SHARDED)
def test_a_sharded_model_is_refused_by_name(kind: str, call: str, tmp_path: Path) -> None:
    tt.save(net(), tmp_path / "old")
    model = SHARDED[kind](net())
    names = {**globals(), "model": model, "path": tmp_path, "x": data()[0]}
    name = re.match(r" *(tt\.\w+)", call)[1]
    gathers = "set_model_state_dict" if name == "tt.load" else "get_model_state_dict"
    with pytest.raises(ValueError, match=rf"sharded .*{name} needs all\. .*{gathers}"):
        eval(call.strip(), names)
    assert [each.name for each in tmp_path.iterdir()] == ["old"]
    if kind.startswith("FSDP"):  # it still runs
        tt.unroll(model, data()[0]).sum().backward()


def test_sharded_layers_are_refused_and_models_beside_them_are_whole(tmp_path: Path) -> None:
    layer: Any = fully_shard(tt.snn.LIF(3))
    with pytest.raises(ValueError, match=r"save_playground needs all\. .*get_model_state_dict"):
        tt.plot.save_playground(layer, tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"tt\.init needs all\. .*get_model_state_dict"):
        tt.init.impulse_response(layer)
    shard(net())
    tt.save(net(), tmp_path / "file")
    tt.load(tmp_path / "file", net())
    tt.metrics.profile(net(), data()[0])


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: tt.snn.Recurrent(tt.snn.LIF(3), m)])
def test_a_product_that_is_read_and_sharded_alone_is_refused(wrap: Any) -> None:
    model = tt.snn.DelayedLinear(3, 3, max_delay=2)
    fully_shard(model.linear)
    with pytest.raises(ValueError, match=r"reads the weight of its linear, .* fully_shard of"):
        tt.unroll(wrap(model), sequence(4, 2, 3, dtype=torch.float32))


@pytest.mark.parametrize("kind", ["FSDP", "FSDP of every layer", "FSDP after a pass"])
def test_the_calls_that_are_named_gather_and_spread(kind: str, tmp_path: Path) -> None:
    model, whole = SHARDED[kind](net()), net()
    with torch.no_grad():
        for p in whole.parameters():
            p.mul_(1.5)
    set_model_state_dict(model, whole.state_dict(), options=WHOLE)
    gathered = net()
    gathered.load_state_dict(get_model_state_dict(model, options=WHOLE))
    tt.save(gathered, tmp_path / "file")
    loaded = net()
    tt.load(tmp_path / "file", loaded)
    torch.testing.assert_close(loaded.state_dict(), whole.state_dict(), rtol=0, atol=0)
    x = sequence(5, 2, 3)
    assert torch.equal(tt.unroll(model, x), tt.unroll(loaded, x))

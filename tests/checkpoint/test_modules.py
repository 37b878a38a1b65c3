from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tracetorch as tt
from tests.cases import Net, Slope, layer
from tests.refusals import refusals, unchanged
from tracetorch import functional, snn

Make = Callable[[], nn.Module]


class OfKind(snn.Neuron):
    """A neuron layer that declares ``leak`` as a decay, a threshold or a weight."""

    states = ("mem",)

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__(3)
        negative = {"negative": True} if kind.startswith("negative") else {}
        getattr(self, kind.removeprefix("negative "))("leak", 0.5, **negative)
        if kind in ("decay", "weight"):
            self.option("spike", functional.atan_surrogate())
        for name, value in options.items():
            self.option(name, value)

    @staticmethod
    def step(x, mem, *, leak, spike, **_):
        return spike(mem * leak + x), mem * leak + x


def sloped(k: float, function: Any = torch.sigmoid) -> nn.Module:
    made = Slope(function)
    made.k.data.fill_(k)
    return made


def heaviside(u: Tensor) -> Tensor:
    return (u > 0).to(u.dtype)


def sharp(u: Tensor) -> Tensor:
    """A step forward, and soft backward."""
    return u.sigmoid() + (heaviside(u) - u.sigmoid()).detach()


def spiking(spike: object) -> Make:
    return lambda: snn.LeakyIntegrator(3, pos_threshold_setup={"surrogate": spike})


class StridedConv(nn.Conv2d):
    """A user's class of a module of PyTorch."""


class Own(nn.Module):
    def __init__(self, lr: float = 0.1, act: str = "relu") -> None:
        super().__init__()
        self.lr, self.act = lr, act
        self.args, self.kwargs = (lr, act), {"lr": lr}
        self.linear = nn.Linear(3, 3)


class OtherOwn(Own):
    pass


def in_a_list(kind: Any) -> Make:
    return lambda: Net(None, linear=nn.Linear(3, 3), acts=[kind()])


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), *modules)


def after(kind: Any, *args: object, **settings: object) -> Make:
    return lambda: seq(kind(*args, **settings))


def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(3, 3))


def conv(**settings: object) -> Make:
    return lambda: nn.Sequential(nn.Conv2d(2, 2, 3, **settings))  # type: ignore[arg-type]


def encoder(**settings: object) -> Make:
    return lambda: nn.TransformerEncoderLayer(4, dim_feedforward=4, **settings)  # type: ignore[arg-type]


# What is saved, a model with the same names and shapes that computes something else, the message.
OTHERS = refusals(
    r"""
    conv() | conv(stride=2) -> '0', nn\.Conv2d: stride: 1 in the file, 2 in the model
    conv(padding=1) | conv(padding=1, padding_mode="circular")
        -> padding_mode: 'zeros' in the file, 'circular' in the model
    partial(StridedConv, 2, 2, 3) | partial(StridedConv, 2, 2, 3, stride=2)
        -> the module, StridedConv: stride: 1 in the file, 2 in the model
    partial(snn.BatchNormThroughTime, 3, steps=2)
        | partial(snn.BatchNormThroughTime, 3, steps=2, eps=0.5)
        -> eps: 1e-05 in the file, 0\.5 in the model
    partial(snn.Noise, 3, seed=1) | partial(snn.Noise, 3, distribution="uniform", seed=1)
        -> distribution: 'normal' in the file, 'uniform' in the model
    after(nn.ReLU) | after(nn.Tanh) -> '1': nn\.ReLU in the file, nn\.Tanh in the
    in_a_list(nn.ReLU) | in_a_list(nn.Tanh)
        -> module 'acts\.0': nn\.ReLU in the file, nn\.Tanh in the model
    seq | after(nn.ReLU) -> module '1': only the model has it, nn\.ReLU
    after(nn.LeakyReLU, 0.1) | after(nn.LeakyReLU, 0.2)
        -> negative_slope: 0.1 in the file, 0.2 in the model
    partial(nn.BatchNorm1d, 3) | partial(nn.BatchNorm1d, 3, eps=0.1)
        -> nn\.BatchNorm: eps: 1e-05 in the file, 0\.1 in the model
    after(nn.LayerNorm, (4, 4), elementwise_affine=False)
        | after(nn.LayerNorm, (4,), elementwise_affine=False)
        -> normalized_shape: \(4, 4\) in the file, \(4\) in the model
    encoder(nhead=2) | encoder(nhead=4)
        -> module 'self_attn', nn\.MultiheadAttention: num_heads: 2 in the file, 4 in the model
    encoder(nhead=2) | encoder(nhead=2, activation=torch.tanh)
        -> activation: 0, 0, .* in the file, -0\.999, .* in the model
    Own | OtherOwn -> the module: Own in the file, OtherOwn in the model
    lambda: graph(("input", "a"), ("a", "b"), ("b", "output"))
        | lambda: graph(("input", "a"), ("input", "b"), ("a", "output"), ("b", "output"))
        -> the module, tt\.NIRModel: flow: .* in the file, .*\[...\] in the model
    partial(OfKind, "decay") | partial(OfKind, "weight")
        -> the module, tt\.Neuron: constraint of leak: sigmoid in the file, unbounded in the model
    partial(OfKind, "threshold") | partial(OfKind, "negative threshold")
        -> constraint of leak: softplus in the file, negative_softplus in the model
    partial(OfKind, "decay", delays=(1, 2)) | partial(OfKind, "decay", delays=(2, 2))
        -> delays: \(1, 2\) in the file, 2 in the model
    spiking(functional.atan_surrogate()) | spiking(torch.sigmoid)
        -> pos_spike: the Heaviside step in the file, 0\.0241, .* at -3\.7, .* in the model
    spiking(heaviside) | spiking(lambda u: (u >= 0).to(u.dtype))
        -> pos_spike: the Heaviside step in the file, 0, 0, 0, 0, 1, 1, .* in the model
    spiking(functional.atan_surrogate()) | spiking(lambda u: (torch.rand_like(u) < u).to(u.dtype))
        -> pos_spike: the Heaviside step in the file
    spiking(Slope(sharp)) | spiking(Slope())
        -> pos_spike: the Heaviside step in the file, Slope in the model
    """
)


def graph(*edges: tuple[str, str]) -> nn.Module:
    nir = pytest.importorskip("nir")
    ends = {"input": nir.Input(np.array([3])), "output": nir.Output(np.array([3]))}
    nodes = {name: nir.Scale(np.ones(3)) for name in ("a", "b")}
    return tt.nir.from_nir(nir.NIRGraph({**ends, **nodes}, list(edges)), dt=1e-3)


def changed(model: nn.Module) -> nn.Module:
    """Add to every tensor, so that a load shows."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model


def load_equals(path: Path, model: nn.Module, expected: nn.Module, **options: Any) -> None:
    tt.load(path, changed(model), **options)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


@OTHERS
def test_a_model_that_computes_something_else_is_refused_and_unchanged(call, error, tmp_path):
    one, other = (eval(each) for each in call.split(" | "))
    path = tmp_path / "model.safetensors"
    for make, into, expected in ((one, other, error), (other, one, "module|model")):
        saved, model = make(), into()
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (saved, model)]
        assert shapes[0] == shapes[1]
        tt.save(saved, path)
        load_equals(path, make(), saved)
        said = rf"does not fit .*{expected}.* Build the model as"
        with unchanged(model), pytest.raises(ValueError, match=said):
            tt.load(path, model)


# What is saved, and a model into which it is loaded: most compute the same in evaluation mode.
SAME: dict[str, tuple[Make, Make]] = {
    "in place": (after(nn.ReLU), after(nn.ReLU, inplace=True)),
    "momentum": (partial(nn.BatchNorm1d, 3), partial(nn.BatchNorm1d, 3, momentum=0.5)),
    "synchronised norm": (partial(nn.BatchNorm2d, 3), partial(nn.SyncBatchNorm, 3)),
    "dropout": (after(nn.Dropout, 0.1), after(nn.Dropout, 0.5)),
    "without dropout": (after(nn.Dropout, 0.1), seq),
    "one mask": (after(snn.LockedDropout, 3), after(nn.Dropout, 0.1)),
    "dropout in the module": (encoder(nhead=2, dropout=0.1), encoder(nhead=2, dropout=0.2)),
    "shared activation": (
        lambda: seq(act := nn.ReLU(), nn.Linear(3, 3), act),
        lambda: seq(nn.ReLU(), nn.Linear(3, 3), nn.ReLU()),
    ),
    "arguments of a user's class": (Own, partial(Own, lr=0.2)),
    "surrogate": (spiking(functional.atan_surrogate()), spiking(functional.boxcar_surrogate(1.0))),
    "user's surrogate": (spiking(functional.atan_surrogate()), spiking(heaviside)),
    "learnable slope": (spiking(sloped(1.0, sharp)), spiking(sloped(9.0, sharp))),
    "learnable spike function": (spiking(sloped(1.0)), spiking(sloped(9.0))),
    "wrapper of a layer": (partial(layer, "LIF", 3), spiking(functional.atan_surrogate())),
    "what learns": (
        partial(layer, "LIF", 3),
        partial(snn.LIF, 3, learn_beta=False, learn_pos_threshold=False, detach_reset=True),
    ),
    "parametrized": (weight_norm, weight_norm),
}


@pytest.mark.parametrize("case", SAME)
def test_a_model_that_computes_the_same_is_loaded(case: str, tmp_path: Path) -> None:
    one, other = SAME[case]
    path = tmp_path / "model.safetensors"
    for make, into in ((one, other), (other, one)):
        saved = changed(make())
        tt.save(saved, path)
        load_equals(path, into(), saved)


def test_surrogates_may_be_modules_or_random_and_the_first_differences_are_listed(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    tt.save(spiking(Slope(sharp))(), path)
    tt.load(path, snn.LeakyIntegrator(3, pos_threshold_setup={}), strict=False)
    with pytest.raises(ValueError, match=r"pos_spike: the Heaviside step in the file, 0\.0241"):
        tt.load(path, spiking(torch.sigmoid)(), strict=False)
    before = torch.get_rng_state()
    tt.save(spiking(lambda u: torch.rand_like(u))(), path)
    assert torch.equal(torch.get_rng_state(), before)
    tt.save(seq(*(nn.ReLU() for _ in range(12))), path)
    with pytest.raises(ValueError, match=r"module '1': .*; module '8': .* and 4 more"):
        tt.load(path, seq(*(nn.Tanh() for _ in range(12))))


def test_strict_false_compares_settings_and_classes_that_receive_values(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    saved: Any = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3))
    tt.save(saved, path)
    # The user accepts another structure; every value has the meaning that it had.
    other: Any = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    assert set(tt.load(path, other, strict=False).unexpected) == {"2.weight", "2.bias"}
    assert torch.equal(other[0].weight, saved[0].weight)
    other = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.GroupNorm(3, 3))
    with pytest.raises(ValueError, match=r"'2': nn\.LayerNorm in the file, nn\.GroupNorm in the"):
        tt.load(path, other, strict=False)
    tt.save(snn.SEWBlock(nn.Linear(3, 3)), path)
    with pytest.raises(ValueError, match="combine: 'add' in the file, 'and' in the model"):
        tt.load(path, snn.SEWBlock(nn.Linear(3, 3), "and"), strict=False)
    tt.save(Own(), path)
    tt.load(path, OtherOwn(), strict=False)
    # What a user's class computes is not known: it may be that of the library, or of another.
    for one, into in ((StridedConv, nn.Conv2d), (nn.Conv2d, StridedConv)):
        saved = one(2, 2, 3)
        tt.save(saved, path)
        load_equals(path, into(2, 2, 3), saved, strict=False)


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "compiled": compiled,
    "compiled inside": lambda model: nn.Sequential(*map(compiled, model.children())),
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "compiled and distributed": lambda model: compiled(
        nn.parallel.DistributedDataParallel(compiled(model))
    ),
}


def stateful(**settings: object) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), layer("LIF", 3, **settings), nn.ReLU())


@pytest.mark.parametrize(
    ("one", "other"), [*pairwise([*WRAPPERS, "none", "distributed", "compiled"])]
)
def test_wrappers_do_not_matter(one: str, other: str, tmp_path: Path) -> None:
    path, group = tmp_path / "model.safetensors", f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=group, rank=0, world_size=1)
    try:
        inner, into = cast("Any", changed(stateful())), cast("Any", stateful())
        inner(torch.rand(2, 3))
        names = {*inner.state_dict(), "state of 1.mem"}
        saved, model = WRAPPERS[one](inner), WRAPPERS[other](into)
        tt.save(saved, path, states=True)
        assert set(load_file(path)) == names
        tt.load(path, model, states=True)
        torch.testing.assert_close(into.state_dict(), inner.state_dict(), rtol=0, atol=0)
        assert torch.equal(inner[1].mem, into[1].mem)
        with pytest.raises(ValueError, match=r"layer '1': .*reset: 'subtract' in the file"):
            tt.load(path, WRAPPERS[other](stateful(reset="zero")))
        wrong = WRAPPERS[other](nn.Sequential(*list(stateful().children())[:2], nn.Tanh()))
        with pytest.raises(ValueError, match=r"fit Sequential\. module '2': nn\.ReLU in the file"):
            tt.load(path, wrong)
    finally:
        torch.distributed.destroy_process_group()


def test_a_part_called_module_keeps_its_name_and_names_with_and_without_wrappers_are_two(
    tmp_path,
) -> None:
    path = tmp_path / "model.safetensors"
    saved = changed(Net(None, module=nn.Linear(3, 3)))
    tt.save(saved, path)
    assert set(load_file(path)) == {"module.weight", "module.bias"}
    load_equals(path, Net(None, module=nn.Linear(3, 3)), saved)
    with pytest.raises(ValueError, match=r"the file lacks 'weight'"):
        tt.load(path, nn.Linear(3, 3))
    save_file({"weight": torch.zeros(3, 3), "_orig_mod.weight": torch.ones(3, 3)}, path)
    with pytest.raises(ValueError, match=r"only the file has '_orig_mod\.weight'"):
        tt.load(path, nn.Linear(3, 3, bias=False))

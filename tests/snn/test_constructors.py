"""Constructors of layers: their signatures, a ``repr`` that is the call, the meta device."""

import copy
import functools
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import tracetorch as tt
from tests.cases import LAYER_MAKERS, LAYERS, NEURONS, SPIKING, sequence
from tests.refusals import check, refusals
from tracetorch import snn
from tracetorch.functional import atan_surrogate, boxcar_surrogate

DEFAULTS = {"alpha": 0.5, "beta": 0.9, "gamma": 0.5, "pos_threshold": 1.0, "neg_threshold": 1.0}
DEFAULTS |= {"pos_scale": 1.0, "neg_scale": 1.0, "rec_weight": 0.0, "bias": 0.0}
DECAYS = ("alpha", "beta", "gamma")


def grammar(name: str) -> list[tuple[str, Any, bool]]:
    """Return name, default and whether keyword-only, of every argument of a layer."""
    letters = name.removesuffix("LIF").removesuffix("Readout")
    has = {"beta"}
    has |= {"alpha"} if "S" in letters else set()
    has |= {"gamma", "rec_weight", "bias"} if "R" in letters else set()
    has |= {"pos_threshold"} if name in SPIKING else set()
    has |= {"neg_threshold", "pos_scale", "neg_scale"} if "B" in letters else set()
    values = [value for value in DEFAULTS if value in has]
    averaged = [d for d in DECAYS if d in has and (d != "beta" or name in SPIKING)]
    arguments: list[tuple[str, Any]] = [("num_neurons", inspect.Parameter.empty)]
    arguments += [*((value, DEFAULTS[value]) for value in values), ("dim", -1)]
    arguments += [(f"{value}_rank", 1) for value in values]
    arguments += [(f"{decay}_ema", decay != "beta") for decay in averaged]
    arguments += [(f"learn_{value}", True) for value in values]
    signs = ("pos_", "neg_") if "B" in letters else ("",) * (name in SPIKING)
    arguments += [(f"{sign}surrogate_derivative", atan_surrogate(2.0)) for sign in signs]
    keywords = [("reset", "subtract", True), ("detach_reset", False, True)]
    return [(*each, False) for each in arguments] + keywords * (name in SPIKING)


@pytest.mark.parametrize("name", LAYERS)
def test_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(snn, name)).parameters.values())
    assert [(p.name, p.default, p.kind is p.KEYWORD_ONLY) for p in parameters] == grammar(name)
    assert get_type_hints(getattr(snn, name).__init__)["num_neurons"] is int


def settings(made: Any) -> dict[str, Any]:
    """Return everything that an argument may set, under the argument's name."""
    names = ("num_neurons", "dim", "alpha_ema", "beta_ema", "gamma_ema", "reset", "detach_reset")
    found: dict[str, Any] = {name: getattr(made, name) for name in names}
    parameters, buffers = dict(made.named_parameters()), dict(made.named_buffers())
    for name in made.constraints:
        found[name] = round(float(getattr(made, name).detach().flatten()[0].abs()), 5)
        found[f"{name}_rank"] = made.state_dict()[f"raw_{name}"].ndim
        found[f"learn_{name}"] = f"raw_{name}" in parameters
        assert (f"raw_{name}" in buffers) is not found[f"learn_{name}"]
    both = made.pos_spike is not None and made.neg_spike is not None
    for sign in ("pos", "neg"):
        name = f"{sign}_surrogate_derivative" if both else "surrogate_derivative"
        found[name] = getattr(made, f"{sign}_spike") or found.get(name)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_every_argument_sets_its_parameter_and_nothing_else(name: str) -> None:
    """Set each alone: two arguments that are swapped inside cannot hide each other."""
    layer = getattr(snn, name)
    plain = settings(layer(3))
    assert settings(layer(4)) == {**plain, "num_neurons": 4}
    values: dict[str, Any] = {"dim": -2, "reset": "zero"}
    for argument, default, _ in grammar(name)[1:]:
        value = values.get(argument, not default if isinstance(default, bool) else 0.37)
        if argument.endswith("_rank"):
            value = 0
        elif argument.endswith("surrogate_derivative"):
            value = boxcar_surrogate(3.0)
        assert settings(layer(3, **{argument: value})) == {**plain, argument: value}, argument
    made = layer(32, beta=0.95, dim=-3)
    assert repr(made) == f"{name}(32, beta=0.95, dim=-3)"
    assert torch.equal(eval(repr(made), vars(snn)).raw_beta, made.raw_beta)


def test_repr_shows_what_was_given_and_assigned() -> None:
    assert repr(snn.Readout(4, beta=torch.rand(4))) == "Readout(4, beta=Tensor[4])"
    assert repr(snn.LIF(2, surrogate_derivative=boxcar_surrogate(2.0))) == (
        "LIF(2, surrogate_derivative=boxcar_surrogate(width=2.0))"
    )
    setups: Any = {"alpha_setup": snn.Decay(torch.rand(2)), "beta_setup": {"value": 0.5}}
    assert repr(snn.LeakyIntegrator(2, **setups)) == (
        "LeakyIntegrator(2, alpha_setup=Decay(value=Tensor[2], rank=UNSET, learnable=UNSET, "
        "use_averaging=UNSET), beta_setup={'value': 0.5})"
    )
    layer: Any = snn.LIF(1, beta=0.5)
    layer.beta = 0.25
    layer.reset = "zero"
    twin = copy.deepcopy(layer)
    twin.pos_threshold = 3.0
    assert repr(twin) == "LIF(1, beta=0.25, reset='zero', pos_threshold=3.0)"
    with pytest.raises(ValueError, match="beta"):
        layer.beta = 2.0
    assert repr(layer) == "LIF(1, beta=0.25, reset='zero')"
    layer.beta, layer.reset = 0.9, "subtract"  # the defaults
    assert repr(layer) == "LIF(1)"
    delay = snn.Delay(1, max_delay=2, delay=1.0)
    delay.sigma = 0.5
    assert repr(delay) == "Delay(1, max_delay=2, delay=1.0, sigma=0.5)"
    delay.round_()
    assert repr(delay) == "Delay(1, max_delay=2, delay=1.0)"


class Own(snn.LIF):
    def __init__(self, size: int, threshold: float = 1.0, *, tau: float = 10.0) -> None:
        super().__init__(size, beta=1 - 1 / tau, pos_threshold=threshold)
        self.tau = tau


@refusals(
    r"""
    snn.LIF(2, threshold=1.0)
        -> TypeError: ^LIF has no argument 'threshold'\. Here it is pos_threshold\. It takes
    snn.BLIF(2, threshold=1.0) -> TypeError: Here it is pos_threshold or neg_threshold\.
    snn.LIF(2, spike_grad=1.0) -> TypeError: Here it is surrogate_derivative\.
    snn.BSRLIF(2, spike_grad=1.0) -> TypeError: pos_surrogate_derivative or neg_surrogate_derivative
    snn.Readout(2, threshold=1.0) -> TypeError: argument 'threshold'\. It takes num_neurons, beta
    snn.Readout(2, learn_bta=True) -> TypeError: 'learn_bta'\. Did you mean 'learn_beta'\? It takes
    snn.LeakyIntegrator(2, beta=1.0) -> TypeError: 'beta'\. Here it is beta_setup\. It takes
    snn.LIF(beta=0.5) -> TypeError: missing 1 required positional argument: 'num_neurons'
    snn.SRReadout(2, num_neurons=2) -> TypeError: multiple values for argument 'num_neurons'
    Own(2, spike_grad=None) -> TypeError: no argument 'spike_grad'\. It takes size, thresh
    setattr(snn.LIF(2), "threshold", 0.1)
        -> AttributeError: LIF has no attribute 'threshold' to assign\. Here it is pos_threshold\.
    setattr(snn.BLIF(2), "v_th", 0.1) -> AttributeError: pos_threshold or neg_threshold\.
    setattr(snn.LIF(2), "decay", 0.1) -> AttributeError: Here it is beta\.
    setattr(snn.LIF(2), "surrogate_derivative", 0.1) -> AttributeError: Here it is pos_spike\.
    """
)
def test_another_name_is_an_error_that_explains(call: str, error: str) -> None:
    check(call, error, globals())


def test_custom_constructors_keep_their_own_arguments() -> None:
    class Open(snn.LIF):
        def __init__(self, num_neurons: int, **options: Any) -> None:
            super().__init__(num_neurons, **options)

    def with_extra(init: Any) -> Any:
        @functools.wraps(init)
        def wrapped(*args: Any, extra: int = 0, **kwargs: Any) -> None:
            init(*args, **kwargs)

        return wrapped

    class Decorated(snn.LIF):
        __init__ = with_extra(snn.LIF.__init__)

    assert repr(Open(3, beta=0.5)) == "Open(3, beta=0.5)"
    for made in (copy.deepcopy(Open(2, pos_threshold=0.5)), Own(2, threshold=0.5)):
        assert made.pos_threshold is not None
        assert made.pos_threshold.tolist() == [0.5, 0.5]
    Decorated(2, extra=1)
    assert Own(2, tau=4.0).tau == 4.0  # which no layer here has


T, B, N = 5, 2, 4


def made_on_meta(name: str, way: str) -> nn.Module:
    if way == "moved":
        return LAYER_MAKERS[name]().to("meta")
    with torch.device("meta"):
        return LAYER_MAKERS[name]()


@pytest.mark.one_in(7)
@pytest.mark.parametrize("way", ["built", "moved"])
@pytest.mark.parametrize("name", LAYER_MAKERS)
def test_a_layer_on_meta_runs_and_is_loaded(name: str, way: str, tmp_path: Path) -> None:
    model, true = made_on_meta(name, way), LAYER_MAKERS[name]()
    shape = (T, B, N, 6) if "Conv" in name else (T, B, N)
    x = sequence(*shape, dtype=torch.float32) * NEURONS.get(name.partition(",")[0], 1.0)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    shapes = {key: value.shape for key, value in true.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    unknown = x.to("meta")
    for training in (True, False):
        model.train(training)
        for by in ("layer", "step"):
            y = tt.unroll(model, unknown, by=by, from_rest=True)
            assert y.is_meta
            assert y.shape == x.shape[:2] + y.shape[2:]
            if y.requires_grad:
                y.sum().backward()
        for _ in range(2):  # a second step finds states
            assert model(unknown[0]).is_meta
        with torch.no_grad():
            for _ in range(3):
                assert model(unknown[0]).is_meta
    tt.detach_states(model)
    assert all(state.is_meta for state in tt.get_states(copy.deepcopy(model)).values())
    tt.save(true, tmp_path / "file")
    if shapes:
        with pytest.raises(ValueError, match=r"on the device meta .*to_empty"):
            tt.load(tmp_path / "file", model)
    model.to_empty(device="cpu")
    assert not tt.get_states(model)
    tt.load(tmp_path / "file", model)
    with tt.fuse.backend("eager"):
        for training in (False, True):
            torch.manual_seed(0)
            expected = tt.unroll(true.train(training), x, from_rest=True)
            torch.manual_seed(0)
            y = tt.unroll(model.train(training), x, from_rest=True)
            assert torch.equal(y, expected)
            assert expected.abs().sum() > 0


def test_a_delay_out_of_range_is_refused_on_meta_too() -> None:
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"delay must lie between 0 and max_delay=3"),
    ):
        snn.Delay(N, max_delay=3, delay=4.0)

"""Configurations that every backend must pass, and comparison of a backend with eager steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests import cases
from tracetorch import fuse, snn

# Name of the layer, its arguments, and the shape of one step, with the neurons at dim.
CONFIGURATIONS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    *((name, {}, (3, 7)) for name in cases.LAYERS),
    *(("LIF", {"surrogate_derivative": s}, (2, 7)) for s in cases.SURROGATES[1:]),
    *(("BSRLIF", {"reset": reset, "detach_reset": cut}, (2, 5))
      for reset in ("subtract", "zero", "none") for cut in (False, True)),
    ("LIF", {"beta_rank": 0, "pos_threshold_rank": 0}, (3, 4)),
    ("LIF", {"learn_beta": False}, (1, 1)),
    ("LIF", {"learn_beta": False, "learn_pos_threshold": False}, (5, 3)),
    ("LIF", {"beta_ema": True}, (2, 63)),
    ("LIF", {}, (7,)),
    ("LIF", {}, (3, 500)),
    ("LIF", {"dim": 0}, (7, 3)),
    ("LIF", {"dim": 1}, (2, 5, 3)),
    ("BLIF", {"dim": -3}, (2, 3, 4, 5)),
    ("BSRLIF", {"dim": -2}, (2, 3, 63)),
    ("SRLIF", {"alpha_ema": False, "gamma_ema": False, "gamma_rank": 0}, (2, 5)),
    ("SRReadout", {"dim": -3, "alpha_rank": 0}, (2, 3, 2, 2)),
    ("BRLIF", {"pos_scale_rank": 0, "neg_scale_rank": 0, "bias_rank": 0}, (2, 9)),
    ("SLIF", {"alpha": 0.9, "learn_alpha": False}, (1, 513)),
    ("RLIF", {"gamma_ema": False, "learn_rec_weight": False}, (3, 4)),
    ("SReadout", {"alpha_ema": False, "beta_rank": 0}, (2, 7)),
    ("BSLIF", {"dim": 0, "reset": "zero"}, (5, 2)),
    ("LeakyIntegrator", {"neg_threshold_setup": {}, "neg_scale_setup": {"value": 0.5}}, (2, 7)),
    ("LeakyIntegrator", {"pos_threshold_setup": {}, "bias_setup": {}, "reset": "none"}, (2, 6)),
    ("LeakyIntegrator",
     {"gamma_setup": {}, "rec_weight_setup": {}, "neg_threshold_setup": {"rank": 0}}, (3, 5)),
]  # fmt: skip


def name_of(case: tuple[str, dict[str, Any], tuple[int, ...]]) -> str:
    arguments = "-".join(f"{k}={v}" for k, v in case[1].items())
    return f"{case[0]}-{arguments}-{case[2]}"


def make(
    case: tuple[str, dict[str, Any], tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> snn.Neuron:
    name, arguments, shape = case
    return cases.layer(name, shape[arguments.get("dim", -1)], **arguments).to(dtype)


def ends(
    layer: snn.Neuron,
    x: Tensor,
    run: Callable[..., Any],
    *,
    live: bool = False,
    further: Sequence[Tensor] = (),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return results by name, and gradients by name of a loss on all of them.

    ``run`` returns outputs, or those and trajectories; ``live`` states require gradients.
    """
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    layer.zero_states()
    layer.zero_grad()
    starts = {}
    if live:
        for name in layer.active_states:
            starts[name] = noise(x[0]).to(torch.promote_types(x.dtype, torch.float32))
            setattr(layer, name, starts[name].requires_grad_())
    x = x.detach().requires_grad_()
    others = [each.detach().requires_grad_() for each in further]
    y = run(layer, x, *others)
    y, records = y if isinstance(y, tuple) else (y, {})
    final = {name: getattr(layer, name) for name in layer.active_states}
    values = {"output": y, **final, **{f"record {n}": each for n, each in records.items()}}
    # Random weights: every output and state gets a cotangent of its own.
    torch.stack([(value * noise(value)).sum() for value in values.values()]).sum().backward()
    grads = {"x": x.grad, **{n: s.grad for n, s in starts.items()}}
    grads |= {f"further {n}": each.grad for n, each in enumerate(others)}
    grads |= {name: p.grad for name, p in layer.named_parameters()}
    return values, {n: g for n, g in grads.items() if g is not None}


def fused(name: str) -> Callable[[snn.Neuron, Tensor], Tensor]:
    def run(layer: snn.Neuron, x: Tensor) -> Tensor:
        with fuse.backend(name):
            return layer.forward_sequence(x)[0]

    return run


def agree(layer: snn.Neuron, x: Tensor, name: str, *, live: bool = False) -> None:
    """Assert that a backend agrees with eager steps: values exactly, gradients to rounding.

    Every element of a gradient by itself: only sums that cancel are measured by the largest.
    """
    values, grads = ends(layer, x, cases.stepped, live=live)
    fast, fast_grads = ends(layer, x, fused(name), live=live)
    parts = getattr(layer, "substeps", 1)  # the decay of a part is a root
    exact = type(layer).__name__ not in cases.INEXACT and parts == 1
    for key, value in values.items():
        if exact or key == "output":
            assert torch.equal(fast[key], value), key
        else:
            torch.testing.assert_close({key: fast[key]}, {key: value}, rtol=1e-4, atol=1e-4)
    assert fast_grads.keys() == grads.keys()
    tolerance = (1e-5 if x.dtype == torch.float32 else 1e-10) * (1 if exact else 10)
    for key, grad in grads.items():
        scale = float(grad.abs().max()) + 1e-3
        found, expected = {key: fast_grads[key]}, {key: grad}  # by name, which the error then has
        atol = 0.3 * tolerance * scale  # of a sigmoid near 1, what is left to 1 has lost digits
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=atol)

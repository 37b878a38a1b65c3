"""Check by layer against by step: run the first steps by layer, then every module by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import modules_of
from tracetorch.snn.neuron import Neuron
from tracetorch.snn.recurrent import Recurrent
from tracetorch.snn.states import StateSnapshot
from tracetorch.unrolling.inputs import Inputs, call
from tracetorch.unrolling.layer_pass import layer_passes

_STEPS = 3
_TOLERANCE = 1e-4  # of a product of matrices in another order
_SHARE = 0.01  # of values that may differ because a spike did


def check_both_ways(model: nn.Module, inputs: Inputs) -> None:
    """Raise at the first module whose outputs by layer and by step differ.

    States, buffers, training flags and the random state are restored.

    Raises:
        ValueError: a module differs; it is named.
    """
    inputs = inputs.first(_STEPS)
    modules = modules_of(model, closed=Recurrent)
    neurons = [m for _, m in modules_of(model) if isinstance(m, Neuron)]
    with restored(model, training=False), torch.no_grad():
        start = StateSnapshot(neurons)
        calls = _calls_by_layer(model, inputs, modules)
        end = StateSnapshot(neurons)
        for path, module, args, kwargs, folded in calls:
            start.restore()
            difference = _difference(module, args, kwargs, folded, inputs.steps, end)
            if difference is not None:
                raise ValueError(
                    f"{path or 'the model'} ({type(module).__name__}) {difference} by layer "
                    "than by step: it does not treat the samples of a batch independently, or does "
                    'not keep the batch first. Use unroll(..., by="step").'
                )


Call = tuple[str, nn.Module, Any, Any, Any]


def _calls_by_layer(
    model: nn.Module, inputs: Inputs, modules: list[tuple[str, nn.Module]]
) -> list[Call]:
    """Record every module's arguments and output of a pass by layer, inner modules first."""
    calls: list[Call] = []

    def hook_of(path: str) -> Any:
        return lambda m, args, kwargs, output: calls.append((path, m, args, kwargs, output))

    with (
        forward_hooks(after=[(module, hook_of(path)) for path, module in modules]),
        layer_passes(modules, inputs.steps, None),
    ):
        call(model, inputs.folded())
    return calls


def _difference(
    module: nn.Module, args: Any, kwargs: Any, folded: Any, T: int, end: StateSnapshot
) -> str | None:
    """Run a module by step and return its difference from by layer, or ``None``."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or any(t.ndim == 0 or t.shape[0] % T for t in tensors):
        return None  # not called on the batch: a table of weights, say
    outputs = []
    for t in range(T):

        def of_step(leaf: Tensor, t: int = t) -> Tensor:
            return torch.unflatten(leaf, 0, (T, -1))[t]

        step_args, step_kwargs = pytree.tree_map_only(Tensor, of_step, (args, kwargs))
        outputs.append(module(*step_args, **step_kwargs))
    for whole, *steps in zip(
        pytree.tree_leaves(folded), *(pytree.tree_leaves(y) for y in outputs), strict=True
    ):
        if not isinstance(whole, Tensor):
            continue
        stepped = torch.stack(steps)
        if whole.ndim == 0 or whole.shape[0] % T:
            return "gives other outputs"
        unfolded = torch.unflatten(whole, 0, (T, -1))
        if unfolded.shape != stepped.shape or not _is_close(unfolded, stepped, _SHARE):
            return "gives other outputs"
    return None if _same_states(module, end, T) else "leaves other states"


def _same_states(module: nn.Module, end: StateSnapshot, T: int) -> bool:
    """Whether the neurons in ``module`` have the same states after both ways.

    Spikes alone may hide what happens in front of them; one that differs moves its neuron's state
    from then on.
    """
    inside = {id(m) for _, m in modules_of(module) if isinstance(m, Neuron)}
    for layer, name, by_layer in end.states:
        by_step = getattr(layer, name)
        if id(layer) not in inside or by_layer is None or by_step is None:
            continue
        if by_layer.shape != by_step.shape or not _is_close(by_layer, by_step, T * _SHARE):
            return False
    return True


def _is_close(one: Tensor, other: Tensor, share: float) -> bool:
    far = ~torch.isclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
    return far.numel() == 0 or bool(far.double().mean() <= share)

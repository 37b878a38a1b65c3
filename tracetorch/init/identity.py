"""Start residual blocks as the identity: ``identity_``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.walk import join_path, named_modules
from tracetorch.init.random_spikes import find_shape, zeros_like_input
from tracetorch.init.response import distance_to_threshold
from tracetorch.init.stages import Stage, follow_calls, overlap, weight_of
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import has_step
from tracetorch.snn.residual import SEWBlock
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling.inputs import parse_inputs

_STEPS = 50  # in which a body must keep silent, or fire at each
_MOST_DOUBLED = 6  # a drive that lets it fire, from the distance to the threshold
_SAMPLES = 4


def identity_(model: nn.Module) -> None:
    """Start every :class:`~tracetorch.snn.SEWBlock` as the identity: its output is its shortcut's.

    The last batch norm, linear layer or convolution of the body gets a weight of 0, and a bias of
    0, so that the body is silent; with ``"and"`` a bias from which it fires at every step. The
    block is run on random spikes, to be sure that it is the identity.

    Args:
        model: any module with such blocks.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no such block; a body does not end in neurons that spike, behind a layer
            with a weight, is recurrent there, needs a bias that it does not have, or shares memory
            with a layer elsewhere; or the block is not the identity then, or takes another shape
            than its layers show. Nothing has been changed then.

    Example:
        >>> body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIF(3))
        >>> block = SEWBlock(body)
        >>> identity_(block)
        >>> block(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])).tolist()
        [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]

    Source: Fang et al., Deep residual learning in spiking neural networks, NeurIPS 2021, section 3.
    """
    check_module(model)
    check_unsharded(model, "tt.init")
    blocks = {path: m for path, m in named_modules(model) if isinstance(m, SEWBlock)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no snn.SEWBlock to start as the identity.")
    shapes = {path: find_shape(block, None) for path, block in blocks.items()}
    last = {path: _last_stage(path, block, shapes[path]) for path, block in blocks.items()}
    _check_own_states(model, {join_path(p, s.source_path): s.source for p, s in last.items()})
    with restored_on_error(p for stage in last.values() for p in stage.source.parameters()):
        for path, block in blocks.items():
            _set_last(path, block, last[path], shapes[path])


def _last_stage(path: str, block: SEWBlock, shape: tuple[int, ...]) -> Stage:
    """Return the neurons that the body of a block ends in, and the layer before them."""
    inputs = parse_inputs(zeros_like_input(block, shape), None, 0, True)
    last = [each for each in follow_calls(block, inputs).stages if each.path.startswith("body")]
    neurons = [m for _, m in named_modules(block.body) if has_step(m)]
    if not last or last[-1].neuron is not neurons[-1] or not spike_functions(neurons[-1]):
        raise ValueError(
            f"{join_path(path, 'body')!r} does not end in neurons that spike, behind a layer with "
            "a weight of its own."
        )
    if last[-1].connection is not None:
        raise ValueError(
            f"{join_path(path, last[-1].path)!r} is recurrent: what it feeds back would have to be "
            "0 too. Let the body end in neurons without a connection."
        )
    return last[-1]


def _check_own_states(model: nn.Module, last: dict[str, nn.Module]) -> None:
    """Raise where another layer shares memory with the last layer of a body, which becomes 0."""
    for path, module in named_modules(model):
        if any(module is source for source in last.values()):
            continue
        for parameter in module.parameters(recurse=False):
            for name, source in last.items():
                if any(overlap(parameter, each) for each in source.parameters(recurse=False)):
                    raise ValueError(
                        f"{path!r} shares a parameter with {name!r}, the last layer of a block's "
                        "body, which becomes 0. Start the blocks before you tie them, or give "
                        "each layer its own."
                    )


def _set_last(path: str, block: SEWBlock, stage: Stage, shape: tuple[int, ...]) -> None:
    """Set the last layer of a body so that its neurons are silent, or fire at every step."""
    name = join_path(path, stage.path)
    distance, bias = distance_to_threshold(stage.neuron, name), stage.source.bias
    drives = [0 * distance]
    # Fang et al. (2021): add and iand are the identity of a silent body, and of one that fires
    if block.combine == "and":
        if not isinstance(bias, Tensor):
            raise ValueError(
                f"{join_path(path, stage.source_path)!r} has no bias, without which {name!r} "
                'cannot fire at every step, as combine="and" needs it.'
            )
        drives = [distance * 2.0**doubled for doubled in range(1, _MOST_DOUBLED + 1)]
    for drive in drives:
        with torch.no_grad():
            weight_of(stage.source).zero_()
            if isinstance(bias, Tensor):
                bias.copy_(drive.to(bias).expand_as(bias))
        if _is_identity(block, shape):
            return
    title = f"block {path!r}" if path else "the block"
    raise ValueError(
        f"{title} is not the identity with the last neurons of its body silent, or driven to fire "
        f'at every step for "and": its output on random spikes {list(shape)} is not its '
        "shortcut's. Let the body return what its last neurons give, and nothing else; for "
        f'"and" {name!r} must not be refractory or slow.'
    )


def _is_identity(block: SEWBlock, shape: tuple[int, ...]) -> bool:
    """Whether the output of a block on random spikes is that of its shortcut."""
    shortcuts: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(_STEPS, _SAMPLES, *shape, generator=generator) < 0.5
    with (
        restored(block, training=False),
        forward_hooks(after=[(block.shortcut, lambda m, a, k, y: shortcuts.append(y))]),
        torch.no_grad(),
    ):
        zero_states(block)
        outputs = [block(x) for x in spikes.to(next(block.parameters()))]
    return all(map(torch.equal, outputs, shortcuts))

"""Start residual blocks as the identity: ``identity_``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_module, check_unsharded
from tracetorch.core.hooks import forward_hooks
from tracetorch.core.snapshot import restored, restored_on_error
from tracetorch.core.walk import join_path, named_modules
from tracetorch.init.random_spikes import find_shape, zeros_like_input
from tracetorch.init.response import distance_to_threshold, run_from_rest
from tracetorch.init.stages import Stage, follow_calls, overlap, weight_of
from tracetorch.snn.module import zero_states
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.residual import SEWBlock
from tracetorch.snn.spike_functions import spike_functions
from tracetorch.unrolling.inputs import parse_inputs

_STEPS = 50  # in which a neuron must keep silent, or fire at each
_MOST_DOUBLED = 6  # a drive that lets it fire, from the distance to the threshold
_COMPARED = 10  # steps of a block and its shortcut
_SAMPLES = 4


def identity_(model: nn.Module) -> None:
    """Start every :class:`~tracetorch.snn.SEWBlock` as the identity: its output is its shortcut's.

    The last batch norm, linear layer or convolution of the body gets a weight of 0, and a bias of
    0, so that the body is silent; with ``"and"`` a bias from which it fires at every step. The
    neuron behind it is run, to be sure that it does, and then the block, on random spikes.

    Args:
        model: any module with such blocks.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no such block; a body does not end in neurons that spike, behind a layer
            with a weight, is recurrent there, needs a bias that it does not have, shares memory
            with a layer elsewhere, or does not keep silent, or fire, as it should; or the block is
            not the identity then, or takes another shape than its layers show. Nothing has been
            changed then.

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
    values: list[tuple[Tensor, Tensor]] = []
    last: dict[str, nn.Module] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # Fang et al. (2021): add and iand are the identity of a silent body, and of one that fires
    for path, block in blocks.items():
        shapes[path] = find_shape(block, None)
        stage = _last_stage(path, block, shapes[path])
        source = stage.source
        last[join_path(path, stage.source_path)] = source
        bias = _bias(path, block, stage)
        if isinstance(source.bias, Tensor):
            values.append((source.bias, bias.to(source.bias).expand_as(source.bias)))
        weight = weight_of(source)
        values.append((weight, torch.zeros_like(weight)))
    _check_own_memory(model, last)
    with restored_on_error(parameter for parameter, _ in values):
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
        for path, block in blocks.items():
            _check_identity(path, block, shapes[path])


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


def _check_own_memory(model: nn.Module, last: dict[str, nn.Module]) -> None:
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


def _bias(path: str, block: SEWBlock, stage: Stage) -> Tensor:
    """Return the drive by which the neurons are silent, or fire at every step: ``[neurons]``."""
    name = join_path(path, stage.path)
    distance = distance_to_threshold(stage.neuron, name)
    if block.combine != "and":
        if not _always(stage.neuron, torch.zeros_like(distance), 0.0):
            raise ValueError(f"{name!r} fires without input, so its block is not the identity.")
        return torch.zeros_like(distance)
    if not isinstance(stage.source.bias, Tensor):
        raise ValueError(
            f"{join_path(path, stage.source_path)!r} has no bias, without which {name!r} "
            'cannot fire at every step, as combine="and" needs it.'
        )
    for doubled in range(1, _MOST_DOUBLED + 1):
        drive = distance * float(2**doubled)
        if _always(stage.neuron, drive, 1.0):
            return drive
    raise ValueError(
        f'{name!r} fires at every step from no drive, as combine="and" needs it: it is refractory '
        'or slow. Use combine="add" or "iand".'
    )


def _always(neuron: Neuron, drive: Tensor, spike: float) -> bool:
    """Whether neurons give this output at every step, from rest, for a constant drive."""
    output = run_from_rest(neuron, drive.expand(_STEPS, 1, -1).contiguous())
    return bool((output == spike).all())


def _check_identity(path: str, block: SEWBlock, shape: tuple[int, ...]) -> None:
    """Raise where the output of a block on random spikes is not that of its shortcut."""
    shortcuts: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(_COMPARED, _SAMPLES, *shape, generator=generator) < 0.5
    with (
        restored(block, training=False),
        forward_hooks(after=[(block.shortcut, lambda m, a, k, y: shortcuts.append(y))]),
        torch.no_grad(),
    ):
        zero_states(block)
        outputs = [block(x) for x in spikes.to(next(block.parameters()))]
    if not all(map(torch.equal, outputs, shortcuts)):
        title = f"block {path!r}" if path else "the block"
        raise ValueError(
            f"{title} is not the identity with the last neurons of its body silent, or firing at "
            f'every step for "and": its output on random spikes {list(shape)} is not its '
            "shortcut's. Let the body return what its last neurons give, and nothing else."
        )

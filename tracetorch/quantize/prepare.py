"""``prepare``: make a network of integer layers that trains the floats of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.chips.limits import Chip
from tracetorch.chips.target import Target, target_of
from tracetorch.core.checks import check_module
from tracetorch.integers.arithmetic import check_between
from tracetorch.integers.layers import Add
from tracetorch.quantize.build import build
from tracetorch.quantize.prepared import Plan, Prepared, observed
from tracetorch.quantize.processor import Processor
from tracetorch.quantize.reader import Call, Join, read_chain, run_by_step
from tracetorch.quantize.stages import Parts, parts_of, stages_in
from tracetorch.snn.delay import DelayingLayer
from tracetorch.snn.model_graph import label

_ATTEMPTS = 8  # to double the range of states that saturate on the sample


def prepare(
    model: nn.Module,
    sample: Tensor,
    chip: Chip | None = None,
    weight_bits: int = 8,
    state_bits: int = 16,
) -> Prepared:
    """Quantise a model for training: integer forwards, and gradients straight through.

    ::

        W_int = clamp(round(W s_in / (s 2^shift)));  x = (W_int x_in) 2^shift + round(bias / s)
        threshold_int = round(threshold / s);        decay_int = round(4096 decay)

    ``s`` is the unit of a neuron's states: found on the sample, as fine as ``state_bits`` allow
    with as much again in reserve, one for each channel where neurons may differ. What is returned
    computes with integers alone, in floats that hold them exactly, and :func:`convert` makes an
    integer model of it that is equal in every spike and state. Its parameters are the model's, to
    be trained on as before; ``model`` itself does not change.

    Args:
        model: a chain of modules, in whatever containers, whose ``forward`` computes nothing
            besides: ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``snn.DelayedLinear``,
            also with the mask and signs of ``snn.connect``, which the integers keep, a batch norm
            behind one of them (folded, as it is in evaluation),
            ``AvgPool`` and ``MaxPool`` of one and two dimensions, ``nn.Flatten``, ``snn.Delay``,
            the twelve layers, ``snn.Recurrent`` of one of them and a product, and branches whose
            spikes are added, ``h + block(h)``. Delays are rounded to whole steps, straight
            through, and learn on. Dropout is left out. A readout can only be last. Where all
            spikes have one size, it counts as one integer and does not learn; the report says so.
            No two parameters may share memory. In float32 or float64.
        sample: inputs ``[T, B, ...]`` as they will come, a batch of training data. Inputs that are
            no integers of 8 bits are rounded to such by an ``integers.Quantize`` at the front.
        chip: ``None`` for integer arithmetic of any width; one that ``tt.chips`` has, for its
            neurons. Chips take inputs of spikes and layers with one threshold (``LIF``, ``SLIF``),
            have decays that do not learn, and a bias in the neuron.
        weight_bits: width of weights, 2 to 16; on a chip at most its own.
        state_bits: width of states, 8 to 24; a chip has its own.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of range, the sample is zero or the model does not take it, a
            layer has no integer form, a number can leave the exact range, a decay is so slow that
            it rounds to 1, or the model computes more than its modules do. The message names the
            layer, and what is allowed.

    Example:
        >>> import tracetorch as tt
        >>> from tracetorch import snn
        >>> model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8), nn.Linear(8, 2), snn.Readout(2))
        >>> x = (torch.rand(20, 16, 4) < 0.5).float()
        >>> prepared = prepare(model, x, weight_bits=4)
        >>> y = prepared.output_scale * tt.unroll(prepared, x)
        >>> y.square().mean().backward()
        >>> prepared[0].parametrizations.weight.original.grad.shape
        torch.Size([8, 4])

    Reference: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018, for training through rounded forwards.
    """
    check_module(model)
    if not isinstance(sample, Tensor) or not sample.is_floating_point():
        got = sample.dtype if isinstance(sample, Tensor) else type(sample).__name__
        raise TypeError(
            f"sample must be a tensor of floats, [T, B, ...], got {got}: give "
            "torch.as_tensor(sample, dtype=torch.float32)."
        )
    if sample.ndim < 3 or not sample.numel():
        raise ValueError(
            f"sample must be a sequence [T, B, ...] of some steps, got shape {list(sample.shape)}."
        )
    _check_numbers(model, sample)
    if not bool(sample.any()):
        raise ValueError(
            "sample is zero everywhere, and the scales are found on it. Give inputs as they will "
            "come, a batch of training data."
        )
    state_bits = check_between("state_bits", state_bits, 8, 24)
    target: Target
    if chip is None:
        target = Processor(None, check_between("weight_bits", weight_bits, 2, 16), state_bits)
    else:
        target = target_of(chip, weight_bits)
    try:
        parts = parts_of(read_chain(model, sample))
    except RuntimeError as error:
        raise ValueError(
            f"the model fails on a step of the sample, {list(sample.shape)} as [T, B, ...]: {error}"
        ) from error
    _check_parts(parts, target)
    if len(stages_in(parts)) < target.least_layers:
        raise ValueError(
            f"a network for {target.chip and target.chip.name} has hidden and output neurons: a "
            "Linear and neurons, and again, at least."
        )
    stages = {stage.neuron_path: stage for stage in stages_in(parts) if stage.neuron is not None}
    found = {path: model.get_submodule(path) for path in stages}
    neurons: dict[str, Any] = {path: getattr(each, "neuron", each) for path, each in found.items()}
    reach = {path: torch.zeros(()) for path in neurons}

    def see(path: str, layer: Any) -> None:
        reach[path] = torch.maximum(reach[path], _reach(layer))

    output, signs = run_by_step(model, sample, neurons, see)
    plan = Plan(target, sample.detach().clone(), output, signs)
    for _ in range(_ATTEMPTS):
        prepared = build(parts, plan, reach).to(sample.device)
        *_, at_ends = observed(prepared, sample, prepared.plan)
        full = [path for path, share in at_ends.items() if share > 0]
        if not full:
            break
        for path in full:
            reach[path] = 2 * reach[path]
    prepared.plan.differences += _rounded_delays(model)
    return prepared.train(model.training)


def _check_numbers(model: nn.Module, sample: Tensor) -> None:
    tensors = {"sample": sample, **dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {tensor.dtype}, which does not hold the integers. Give float32 or "
                "float64: model.float(), sample.float()."
            )
        # a parameter of neurons may be infinite: a threshold that is never reached
        is_weight = tensor.ndim > 1
        if not bool(tensor.isfinite().all() if is_weight else not tensor.isnan().any()):
            raise ValueError(
                f"{name} has values that are not finite, and no scale. Load or train it again, or "
                "leave them out."
            )


def _check_parts(parts: Parts, target: Target) -> None:
    for part in parts:
        if isinstance(part, Join):
            refused = [("the model", target.refuse_module(Add))]
        elif isinstance(part, Call):
            refused = [(part.path, target.refuse_module(type(part.module)))]
        else:
            between = [(path, target.refuse_module(type(each))) for path, each in part.between]
            refused = [target.refuse(part) or ("", None), *between]
        for path, reason in refused:
            if reason is not None:
                raise ValueError(f"{path or 'the model'}: quantised models have {reason}.")
        if isinstance(part, Join):
            _check_parts([*part.first, *part.second], target)


def _reach(layer: Any) -> Tensor:
    """Return how far the states of float neurons are, with their thresholds, of every neuron."""

    def each(name: str) -> Tensor:
        value: Tensor = getattr(layer, name).abs().movedim(layer.dim, 0)
        return value.flatten(1).amax(1)

    found, threshold = each("mem"), torch.zeros(())
    for value in (layer.pos_threshold, layer.neg_threshold):
        if value is not None:
            threshold = torch.maximum(threshold.to(found), value.detach().abs().to(found))
    found = found + threshold
    return torch.maximum(found, each("syn")) if "syn" in layer.active_states else found


def _rounded_delays(model: nn.Module) -> Iterator[str]:
    for path, layer in model.named_modules():
        if isinstance(layer, DelayingLayer):
            off = (layer.delay.detach() - layer.delay.detach().round()).abs()
            if bool(off.any()):
                yield (
                    f"{label(path, layer)} has delays between two steps, rounded by "
                    f"{float(off.mean()):.2f} of a step in the mean, {float(off.max()):.2f} at most"
                )

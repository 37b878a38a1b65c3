"""``prepare``: make a network of integer layers that trains the floats of a model."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from tracetorch.chips import loihi, xylo
from tracetorch.chips.chip import Chip
from tracetorch.core.checks import check_integer, check_module
from tracetorch.quantize.build import build, names_of
from tracetorch.quantize.chain import Chain, chain_of, check_same
from tracetorch.quantize.observe import neurons_of, observed, reach_of
from tracetorch.quantize.prepared import Prepared, integer_model
from tracetorch.quantize.processor import Processor
from tracetorch.quantize.silicon import Loihi, Xylo
from tracetorch.quantize.stages import Stage, stages_of
from tracetorch.quantize.target import Target
from tracetorch.snn.recurrent import Recurrent

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
            ``snn.DelayedConv1d``, also with the mask and signs of ``snn.connect``, which the
            integers keep, a batch norm behind one of them (folded, as it is in evaluation),
            ``AvgPool`` and ``MaxPool`` of one and two dimensions, ``nn.Flatten``, ``snn.Delay``,
            the twelve layers, and ``snn.Recurrent`` of one of them and a product. Delays are
            rounded to whole steps, straight through, and learn on. Dropout is left out. A readout
            can only be last. Where all spikes have one size, it counts as one integer and does not
            learn; the report says so. No two parameters may share memory. In float32 or float64.
        sample: inputs ``[T, B, ...]`` as they will come, a batch of training data. Inputs that are
            no integers of 8 bits are rounded to such by an ``integers.Quantize`` at the front.
        chip: ``None`` for integer arithmetic of any width; ``tt.chips.xylo.XYLO_1``, ``XYLO_2`` or
            ``tt.chips.loihi.LOIHI`` for the neurons of a chip. Xylo takes ``Linear`` and
            ``Recurrent`` of it, and delivers spikes a step later; both chips take inputs of spikes
            and layers with one threshold (``LIF``, ``SLIF``), have decays that do not learn, and a
            bias in the neuron.
        weight_bits: width of weights, 2 to 16; on a chip at most its own.
        state_bits: width of states, 8 to 24; a chip has its own.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of range, a layer has no integer form, a number can leave the
            exact range, or the model computes more than its modules do. The message names the
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
        raise TypeError("sample must be a tensor of floats, [T, B, ...].")
    if sample.ndim < 3 or not sample.numel():
        raise ValueError(
            f"sample must be a sequence [T, B, ...] of some steps, got shape {list(sample.shape)}."
        )
    _check_dtypes(model, sample)
    target = _target(chip, weight_bits, state_bits)
    chain, shapes = chain_of(model, sample[0])
    stages, tail = stages_of(chain, shapes)
    for stage in stages:
        _check_finite(stage)
        _check_delays(stage, target)
        last = stage is stages[-1]
        reason = target.refuse(stage, last=last)
        if stage.is_readout and stage.connection is not None:
            reason = "no Recurrent of a readout, whose values are too wide to be multiplied"
        if reason is not None:
            path = stage.neuron_path or stage.path or "the model"
            raise ValueError(f"{path}: quantised models have {reason}.")
    if target.spikes_later and (len(stages) < 2 or tail):
        raise ValueError(
            "Xylo has hidden and output neurons: a Linear and neurons, and again, at least."
        )
    check_same(model, chain, sample)
    names = names_of(stages, tail)
    twin = _twin(stages, tail, names)
    states = observed(twin, sample)[1]
    reach = {name: reach_of(layer, states[name]) for name, (_, layer) in neurons_of(twin).items()}
    for _ in range(_ATTEMPTS):
        prepared = build(stages, tail, twin, sample, target, reach, names)
        prepared.to(sample.device)
        seen = observed(prepared, sample)[1]
        full = [n for n, held in seen.items() if _saturates(held, target)]
        if not full:
            break
        for name in full:
            reach[name] = 2 * reach[name]
    with torch.no_grad():
        integer_model(prepared)  # raises where convert would: it is not exact before it learns
    return prepared.train(model.training)


def _check_dtypes(model: nn.Module, sample: Tensor) -> None:
    """Raise where a model or its sample is of another dtype than those that hold the integers."""
    tensors = {"sample": sample, **dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {tensor.dtype}, which does not hold the integers. Give float32 or "
                "float64: model.float(), sample.float()."
            )
    if not bool(torch.isfinite(sample).all()):
        raise ValueError("sample has values that are not finite, and no scale. Leave them out.")


def _check_finite(stage: Stage) -> None:
    """Raise where the weights of a stage are not finite, or a parameter of its neurons is NaN."""
    products = {stage.path: stage.product, f"{stage.neuron_path}.connection": stage.connection}
    for path, product in products.items():
        if product is not None and not all(bool(p.isfinite().all()) for p in product.parameters()):
            raise ValueError(
                f"{path or 'the model'} has weights that are not finite, and no scale. Load or "
                "train it again; a batch norm behind it is folded into them."
            )
    if stage.neuron is not None:
        for name, value in stage.neuron.named_parameters():
            if bool(value.isnan().any()):
                raise ValueError(f"{stage.neuron_path} has {name} of NaN. Load or train it again.")


def _check_delays(stage: Stage, target: Target) -> None:
    """Raise where a stage has delays of synapses, and the target none."""
    if target.without_delays is None:
        return
    delays = {stage.path: stage.delays, f"{stage.neuron_path}.connection": stage.connection_delays}
    for path, layer in delays.items():
        if layer is not None:
            raise ValueError(
                f"{path or 'the model'}: quantised models have {target.without_delays}."
            )


def _target(chip: Chip | None, weight_bits: int, state_bits: int) -> Target:
    """Return what to quantise for; raise where widths do not fit."""
    most = 16 if chip is None else 8
    if not 2 <= check_integer("weight_bits", weight_bits) <= most:
        raise ValueError(f"weight_bits must be 2 to {most}, got {weight_bits}.")
    if not 8 <= check_integer("state_bits", state_bits) <= 24:
        raise ValueError(f"state_bits must be 8 to 24, got {state_bits}.")
    if chip is None:
        return Processor(None, int(weight_bits), int(state_bits))
    if chip in (xylo.XYLO_1, xylo.XYLO_2):
        return Xylo(
            *(chip, int(weight_bits), chip.state_bits, chip.weight_exponent[1]),
            bias_in_product=False,
            spikes_later=True,
            one_inner_shift=True,
        )
    if chip == loihi.LOIHI:
        # inputs of 16 bits arrive 6 bits higher; even weights are twice the integers here
        return Loihi(
            *(chip, int(weight_bits), 16, chip.weight_exponent[1] + 1),
            per_channel=False,
            bias_in_product=False,
        )
    if not isinstance(chip, Chip):
        raise TypeError(f"chip must be a tt.chips.Chip or None, got {chip!r}.")
    raise ValueError(
        f"chip must be chips.xylo.XYLO_1, chips.xylo.XYLO_2 or chips.loihi.LOIHI, got {chip.name}."
    )


def _twin(stages: list[Stage], tail: Chain, names: dict[str, str]) -> nn.Sequential:
    """Return the float model as a flat chain, batch norms folded."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in stages:
        product = stage.delays or stage.product
        for path, module in (*stage.before, (stage.path, product), *stage.between):
            found[names[path]] = module
        if stage.neuron is not None:
            neuron: nn.Module = stage.neuron
            if stage.connection is not None:
                neuron = Recurrent(stage.neuron, stage.connection_delays or stage.connection)
            found[names[stage.neuron_path]] = neuron
    found.update((names[path], module) for path, module in tail)
    return copy.deepcopy(nn.Sequential(found)).eval()


def _saturates(states: dict[str, Tensor], target: Target) -> bool:
    """Whether a state is at an end of its width."""
    held = [value for name, value in states.items() if name not in ("output", "prev_output")]
    return any(bool((value.abs() >= target.state_limit).any()) for value in held)

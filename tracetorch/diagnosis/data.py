"""Find faults of inputs, parameters, outputs and loss: not finite, zero, badly scaled, equal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, measured
from tracetorch.unrolling.inputs import tensors_by_name

_LARGE = 30.0  # root mean square; pixels of 0 to 255 have about 100
_SMALL = 1e-3  # largest magnitude


def inputs(evidence: Evidence) -> Iterator[Finding]:
    """Find inputs that are not finite, zero, or badly scaled."""
    for name, x in tensors_by_name(evidence.inputs.tensors).items():
        bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
        if bad:
            yield measured("error", "input-not-finite", "", float(bad))(
                f"{bad} of {x.numel()} values of {name} are NaN or infinite.",
                "They spread to all later layers and steps, to the loss or its gradient.",
                "Look for divisions by a spread of zero and for missing values in the data; a "
                "ragged batch is padded with zeros and given a mask.",
            )
        elif not x.any():
            yield measured("error", "input-zero", "", 0.0)(
                f"All {x.numel()} values of {name} are zero.",
                "The first layer receives nothing but its biases: all samples are equal.",
                "Print a batch as it leaves the loader. An encoder with too low a gain, or integer "
                "division of pixels by 255, does this.",
            )
        elif x.is_floating_point():
            yield from _scale(name, x.detach())


def _scale(name: str, x: Tensor) -> Iterator[Finding]:
    # In double precision: squares of half precision overflow.
    strength = float(x.double().square().mean().sqrt())
    largest = float(x.abs().max())
    if strength > _LARGE:
        yield measured("warning", "input-scale", "", strength)(
            f"{name} has a root mean square of {strength:.3g} (largest value {largest:.3g}).",
            "Thresholds are about 1: such inputs drive neurons to fire at every step, or carry "
            "their membranes far beyond where the surrogate has a slope.",
            "Scale to a magnitude of about 1: pixels by 255, or (x - mean) / std over the "
            "training set.",
        )
    elif largest < _SMALL:
        yield measured("warning", "input-scale", "", strength)(
            f"The largest value of {name} is {largest:.3g}.",
            "Membranes will hardly move, and no threshold of about 1 is reached.",
            "Scale to a magnitude of about 1: (x - mean) / std over the training set, or raise "
            "the encoder's gain.",
        )


def outputs(evidence: Evidence) -> Iterator[Finding]:
    """Find the first values that are not finite: parameters, activity of a layer, the loss."""
    for name, parameter in evidence.parameters.items():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            yield measured("error", "parameter-not-finite", name, float(bad))(
                f"{bad} of {parameter.numel()} values are NaN or infinite.",
                "An earlier step of the optimizer has destroyed the network; it cannot recover.",
                "Go back to a saved model. Lower the learning rate, clip gradients with "
                "torch.nn.utils.clip_grad_norm_, and stop at the first loss that is not finite.",
            )
    for layer in evidence.layers:
        finite_input = bool(torch.isfinite(layer.input).all())
        if not (finite_input and torch.isfinite(layer.output).all()):
            place = "what it computes" if finite_input else "what it is given"
            yield measured(
                "error",
                "activity-not-finite",
                layer.path,
                float((~torch.isfinite(layer.output)).double().mean()),
            )(
                f"The first values that are NaN or infinite are in {place}.",
                "Everything after this layer, and every later step of it, is lost.",
                "Look at the layer just before: a division, a logarithm, a norm of zero, weights "
                "that have grown without bound.",
            )
            break  # in later layers the values have spread from here
    if not torch.isfinite(evidence.loss):
        yield measured("error", "loss-not-finite", "", float(evidence.loss))(
            f"The loss is {float(evidence.loss)}.",
            "Its gradient is NaN, and one step of the optimizer makes every parameter NaN.",
            "If the outputs are finite, the loss takes the logarithm or the quotient of a zero: "
            "use a loss on logits (F.cross_entropy), or add an epsilon.",
        )


def equal_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Find outputs that are equal for all samples, though the inputs differ."""
    if evidence.inputs.batch < 2 or not evidence.outputs or not _samples_differ(evidence):
        return
    # Exactly equal: outputs that differ by rounding still carry the input.
    floating = [y for y in evidence.outputs if y.is_floating_point() and y.ndim > 1]
    if floating and all(bool((y == y[:, :1]).all()) for y in floating):
        yield measured("error", "output-ignores-input", "", 0.0)(
            f"All {evidence.inputs.batch} samples have the same output at every step, though their "
            "inputs differ.",
            "The differences between samples are lost on the way; the best that can be learned is "
            "an average answer.",
            "Find the layer where it stops: the first whose neurons are all dead or saturated.",
        )


def _samples_differ(evidence: Evidence) -> bool:
    """Whether the inputs of any sample differ from those of the first one."""
    batch_dim = 0 if evidence.inputs.static else 1  # a static input has no time
    return any(
        bool((x != x.narrow(batch_dim, 0, 1)).any())
        for x in tensors_by_name(evidence.inputs.tensors).values()
    )

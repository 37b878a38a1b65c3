"""What goes in and what comes out: inputs, outputs, the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding

_LARGE = 30.0  # root mean square; pixels of 0 to 255 have about 100
_SMALL = 1e-3  # largest magnitude


def inputs(evidence: Evidence) -> Iterator[Finding]:
    """Inputs that no network learns from as they are."""
    for name, x in _named(evidence).items():
        bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
        if bad:
            yield Finding(
                "error",
                "input-not-finite",
                "",
                float(bad),
                f"{bad} of {x.numel()} values of {name} are NaN or infinite.",
                "They spread to all layers behind and all later steps, to the loss or its slope.",
                "Look for divisions by a spread of zero and for missing values in the data; a "
                "ragged batch is padded with zeros and given a mask.",
            )
        elif not x.any():
            yield Finding(
                "error",
                "input-zero",
                "",
                0.0,
                f"All {x.numel()} values of {name} are zero.",
                "Nothing reaches the first layer but its biases: every sample looks the same.",
                "Print a batch as it leaves the loader. An encoder with too low a gain, or integer "
                "division of pixels by 255, does this.",
            )
        elif x.is_floating_point():
            yield from _scale(name, x.detach())


def _scale(name: str, x: Tensor) -> Iterator[Finding]:
    strength = float(x.double().square().mean().sqrt())
    largest = float(x.abs().max())
    if strength > _LARGE:
        yield Finding(
            "warning",
            "input-scale",
            "",
            strength,
            f"{name} has a root mean square of {strength:.3g} (largest value {largest:.3g}).",
            "Thresholds are about 1: such inputs drive neurons to fire at every step, or carry "
            "their membranes far beyond where the surrogate has a slope.",
            "Scale to a magnitude of about 1: pixels by 255, or (x - mean) / std over the "
            "training set.",
        )
    elif largest < _SMALL:
        yield Finding(
            "warning",
            "input-scale",
            "",
            strength,
            f"The largest value of {name} is {largest:.3g}.",
            "Membranes will hardly move, and no threshold of about 1 is reached.",
            "Scale to a magnitude of about 1: (x - mean) / std over the training set, or raise "
            "the encoder's gain.",
        )


def outputs(evidence: Evidence) -> Iterator[Finding]:
    """Where the first value that is not finite appears; a loss that cannot be learned from."""
    for name, parameter in evidence.parameters.items():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            yield Finding(
                "error",
                "parameter-not-finite",
                name,
                float(bad),
                f"{bad} of {parameter.numel()} values are NaN or infinite.",
                "An earlier step of the optimizer has destroyed the network; it cannot recover.",
                "Go back to a saved model. Lower the learning rate, clip gradients with "
                "torch.nn.utils.clip_grad_norm_, and stop at the first loss that is not finite.",
            )
    for seen in evidence.layers:
        came, went = torch.isfinite(seen.input).all(), torch.isfinite(seen.output).all()
        if not (came and went):
            place = "what it is given" if not came else "what it computes"
            yield Finding(
                "error",
                "activity-not-finite",
                seen.path,
                float((~torch.isfinite(seen.output)).double().mean()),
                f"The first values that are NaN or infinite are in {place}.",
                "Everything behind this layer, and every later step of it, is lost.",
                "Look at the layer just before: a division, a logarithm, a norm of zero, weights "
                "that have grown without bound.",
            )
            break
    if not torch.isfinite(evidence.loss):
        yield Finding(
            "error",
            "loss-not-finite",
            "",
            float(evidence.loss),
            f"The loss is {float(evidence.loss)}.",
            "Its gradient is NaN, and one step of the optimizer makes every parameter NaN.",
            "If the outputs are finite, the loss takes the logarithm or the quotient of a zero: "
            "use a loss on logits (F.cross_entropy), or add an epsilon.",
        )


def alike(evidence: Evidence) -> Iterator[Finding]:
    """Outputs that are the same whatever the input."""
    if evidence.given.batch < 2 or not evidence.outputs or not _differ(evidence):
        return
    floating = [y for y in evidence.outputs if y.is_floating_point() and y.ndim > 1]
    if floating and all(bool((y == y[:, :1]).all()) for y in floating):
        yield Finding(
            "error",
            "output-ignores-input",
            "",
            0.0,
            f"All {evidence.given.batch} samples have the same output at every step, though their "
            "inputs differ.",
            "What tells samples apart is lost on the way; the best that can be learned is an "
            "average answer.",
            "Find the layer where it stops: the first whose neurons are all dead or saturated.",
        )


def _named(evidence: Evidence) -> dict[str, Tensor]:
    given = evidence.given.tensors
    if isinstance(given, Tensor):
        return {"x": given}
    if isinstance(given, tuple):
        return {f"x[{i}]": each for i, each in enumerate(given)}
    return {f"x[{name!r}]": each for name, each in given.items()}


def _differ(evidence: Evidence) -> bool:
    """Whether any sample differs from the first one in what is given."""
    along = 0 if evidence.given.static else 1
    return any(bool((x != x.narrow(along, 0, 1)).any()) for x in _named(evidence).values())

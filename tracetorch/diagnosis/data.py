"""Find faults of inputs, states before the run, parameters, activity and loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, finder, join_first, measured
from tracetorch.unrolling.inputs import tensors_by_name

_LARGE = 30.0  # root mean square; pixels of 0 to 255 have about 100
_SMALL = 1e-3  # largest magnitude


@finder
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


@finder
def input_dtype(evidence: Evidence) -> Iterator[Finding]:
    """Find inputs of a dtype that the model does not take."""
    named = tensors_by_name(evidence.inputs.tensors)
    for name, dtype in evidence.dtypes.items():
        x = named[name]
        scale = " / 255" if dtype == torch.uint8 and float(x.max()) > 1 else ""
        yield measured("error", "input-dtype", "", float(x.max()))(
            f"{name} is {dtype}, with values from {float(x.min()):.4g} to {float(x.max()):.4g}; "
            f"the model does not take it. (Here it was run on {x.dtype}.)",
            "The first layer raises an error of PyTorch's: weights and inputs have one dtype.",
            f"Convert it: {name}.to({x.dtype}){scale}.",
        )


@finder
def input_scale(evidence: Evidence) -> Iterator[Finding]:
    """Find inputs that are too large or too small for thresholds of about 1."""
    for name, x in tensors_by_name(evidence.inputs.tensors).items():
        x = x.detach()
        if not (x.is_floating_point() and torch.isfinite(x).all() and x.any()):
            continue
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


@finder
def carried_states(evidence: Evidence) -> Iterator[Finding]:
    """Find states that are left over from an earlier run."""
    old, needed, batch = evidence.old_states, evidence.new_states, evidence.inputs.batch
    if not any(bool(state.any()) or state.requires_grad for state in old.values()):
        return  # there are none, or they are at rest
    unfit = evidence.unfit_states()
    if unfit:
        name = unfit[0]
        yield measured("error", "states-do-not-fit", name.rpartition(".")[0], len(unfit))(
            f"The model holds {name} of shape {list(old[name].shape)}, {old[name].dtype}; this "
            f"batch of {batch} needs {list(needed[name].shape)}, {needed[name].dtype}.",
            "The next call of the model raises an error. (Here it was run from rest.)",
            "Call zero_states() before each new batch.",
        )
        return
    # In a stream, states are carried on purpose: only their graph must be cut.
    if evidence.stream:
        in_graph = [name for name, state in old.items() if state.requires_grad]
        if in_graph:
            yield measured(
                "warning", "states-hold-a-graph", in_graph[0].rpartition(".")[0], len(in_graph)
            )(
                f"{len(in_graph)} of {len(old)} states, {in_graph[0]} first, are part of the "
                "graph of an earlier run.",
                "backward() goes through all earlier chunks too, or fails because they are freed.",
                "Call detach_states() after each chunk: truncated backpropagation through time.",
            )
        return
    carried_loss = evidence.loss_from_old_states
    comparison, first = "", next(iter(old))
    if carried_loss is not None:
        comparison = f" From them the loss is {carried_loss:.4g}, from rest {evidence.loss:.4g}."
    value = math.nan if carried_loss is None else carried_loss
    yield measured("warning", "states-carried", first.rpartition(".")[0], value)(
        f"The model holds {len(old)} states of an earlier run, {first} first.{comparison}",
        "A run continues from them: the states of one batch are noise to the next.",
        "Call zero_states() before each new batch, and diagnose after it. For a stream that is "
        "continued on purpose, use diagnose(..., stream=True).",
    )


@finder
def zeroed_states(evidence: Evidence) -> Iterator[Finding]:
    """Find states that are lost between two steps."""
    if evidence.zeroed:
        yield measured("warning", "states-emptied", evidence.zeroed[0], len(evidence.zeroed))(
            f"The states of {len(evidence.zeroed)} of {len(evidence.layers)} neuron layers are "
            f"gone when the second step begins: {join_first(evidence.zeroed)}.",
            "Called step by step, the network begins every step from rest: it remembers nothing, "
            "and no gradient goes back in time. (tt.unroll by layer calls forward() once for all "
            "steps, and gives other outputs.)",
            "Call zero_states() once before each sequence, outside forward().",
        )


@finder
def not_finite(evidence: Evidence) -> Iterator[Finding]:
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
            share = float((~torch.isfinite(layer.output)).double().mean())
            yield measured("error", "activity-not-finite", layer.path, share)(
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

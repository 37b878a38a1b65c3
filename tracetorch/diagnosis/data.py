"""Find faults of inputs, states before the run, values that are not finite, and of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tracetorch.diagnosis.criteria import CLASSIFIES
from tracetorch.diagnosis.evidence import Evidence
from tracetorch.diagnosis.finding import Finding, Severity, finder, join_first, measured
from tracetorch.unrolling.inputs import tensors_by_name

_LARGE = 30.0  # root mean square; pixels of 0 to 255 have about 100
_SMALL = 1e-3  # largest magnitude
_OFFSET = 3.0  # of a feature's mean, in thresholds, and in deviations
_WORSE, _FAR_WORSE = 3.0, 10.0  # times the cross entropy of a guess
_ROUNDING = 1e-2


def _bad(x: Tensor) -> int:
    """Count the values that are not finite."""
    return int((~torch.isfinite(x)).sum())


@finder
def inputs(evidence: Evidence) -> Iterator[Finding]:
    """Find inputs that are not finite, zero, of a dtype not taken, or badly scaled."""
    named = tensors_by_name(evidence.inputs.tensors)
    for name, x in named.items():
        if bad := _bad(x):
            yield measured("input-not-finite", "", bad, count=bad, total=x.numel(), name=name)
        elif not x.any():
            yield measured("input-zero", "", 0.0, total=x.numel(), name=name)
    for name, dtype in evidence.dtypes.items():
        x = named[name]
        low, high = float(x.min()), float(x.max())
        scale = " / 255" if dtype == torch.uint8 and high > 1 else ""
        of = {"name": name, "dtype": dtype, "taken": x.dtype, "low": low, "scale": scale}
        yield measured("input-dtype", "", high, **of)
    for name, x in named.items():
        if not x.is_floating_point() or _bad(x) or not x.any():
            continue
        # In double precision: squares of half precision overflow.
        strength = float(x.detach().double().square().mean().sqrt())
        largest = float(x.detach().abs().max())
        row = "large" if strength > _LARGE else "small" if largest < _SMALL else None
        if row:
            yield measured(f"input-scale/{row}", "", strength, name=name, largest=largest)
        else:
            yield from _offsets(evidence, name, x)


def _offsets(evidence: Evidence, name: str, x: Tensor) -> Iterator[Finding]:
    """Find features that are large and hardly vary; of images these are channels."""
    steps = 0 if evidence.inputs.static else 1
    mask = evidence.mask if steps else None
    if x.ndim not in (steps + 2, steps + 4):
        return
    features = (x.flatten(0, steps) if mask is None else x[mask]).detach().double()
    features = features.transpose(0, 1).flatten(1)
    means, deviations = features.mean(1), features.std(1, correction=0)
    apart = means.abs() - _OFFSET * deviations.clamp(min=1.0)
    if float(apart.max()) > 0:
        first = int(apart.argmax())
        of: dict[str, Any] = {
            "first": first,
            "deviation": float(deviations[first]),
            "total": len(means),
        }
        count = int((apart > 0).sum())
        of["others"] = f" {count} of {len(means)} features are so far off." if count > 1 else ""
        yield measured("input-offset", "", float(means[first]), name=name, **of)


@finder
def carried_states(evidence: Evidence) -> Iterator[Finding]:
    """Find states that are left over from an earlier run."""
    old, needed, batch = evidence.old_states, evidence.new_states, evidence.inputs.batch
    if not any(bool(state.any()) or state.requires_grad for state in old.values()):
        return  # there are none, or they are at rest
    unfit = evidence.unfit_states()
    in_graph = [name for name, state in old.items() if state.requires_grad]
    name = (unfit or (in_graph if evidence.stream else [*old]) or [""])[0]
    layer, of = name.rpartition(".")[0], {"name": name, "total": len(old)}
    if unfit:
        kept, wanted = (f"{list(s[name].shape)}, {s[name].dtype}" for s in (old, needed))
        of |= {"kept": kept, "needed": wanted, "batch": batch}
        yield measured("states-do-not-fit", layer, len(unfit), **of)
    elif evidence.stream:  # states are carried on purpose: only their graph must be cut
        if in_graph:
            count = len(in_graph)
            yield measured("states-hold-a-graph", layer, count, count=count, **of)
    else:
        carried = evidence.loss_from_old_states
        losses = f" From them the loss is {carried:.4g}, from rest {evidence.loss:.4g}."
        value, words = (math.nan, "") if carried is None else (carried, losses)
        yield measured("states-carried", layer, value, comparison=words, **of)


@finder
def zeroed_states(evidence: Evidence) -> Iterator[Finding]:
    """Find states that are lost between two steps."""
    if zeroed := evidence.zeroed:
        of = {"count": len(zeroed), "total": len(evidence.layers), "names": join_first(zeroed)}
        yield measured("states-emptied", zeroed[0], len(zeroed), **of)


@finder
def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find the first values that are not finite: parameters, activity of a layer, the loss."""
    for name, parameter in evidence.parameters.items():
        if bad := _bad(parameter):
            yield measured("parameter-not-finite", name, bad, count=bad, total=parameter.numel())
    for layer in evidence.layers:
        given, made = _bad(layer.input), _bad(layer.output)
        if given or made:
            place = "what it is given" if given else "what it computes"
            yield measured(
                "activity-not-finite", layer.path, made / layer.output.numel(), place=place
            )
            break  # in later layers the values have spread from here
    if _bad(evidence.loss):
        yield measured("loss-not-finite", "", float(evidence.loss))


@finder
def bounded_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find activations between the output and a loss that takes logits."""
    for criterion in evidence.criteria:
        activation = evidence.activations.get(id(criterion))
        if activation is None:
            continue
        of = {"name": criterion.function.__name__, "activation": activation}
        given = criterion.input.detach()
        if activation != "ReLU":
            yield measured("activation-before-loss", "", float(evidence.loss), **of)
        elif float(given.min()) >= 0:  # not a clamp that keeps the sign
            yield measured("relu-on-logits", "", float((given == 0).double().mean()), **of)


@finder
def log_probabilities(evidence: Evidence) -> Iterator[Finding]:
    """Find a negative log-likelihood of what are no logarithms of probabilities."""
    for criterion in evidence.criteria:
        x = criterion.input.detach()
        if criterion.function is not CLASSIFIES[1] or x.ndim < 2 or not bool(x.isfinite().all()):
            continue
        total = float(x.double().exp().sum(1).mean())
        if not math.isclose(total, 1.0, abs_tol=_ROUNDING):
            yield measured("no-log-probabilities", "", total)


@finder
def worse_than_guessing(evidence: Evidence) -> Iterator[Finding]:
    """Find a cross entropy of one answer for each sample that is far above that of a guess."""
    for criterion in evidence.criteria:
        logits, target = criterion.input.detach(), criterion.target
        one_each = logits.ndim == 2 and logits.shape[1] > 1 and not target.is_floating_point()
        if criterion.function is not CLASSIFIES[0] or not one_each:
            continue
        kept = target >= 0  # others, -100 say, are ignored
        value = float(torch.nn.functional.cross_entropy(logits[kept].double(), target[kept]))
        guess = math.log(logits.shape[1])
        if value > _WORSE * guess:
            severity: Severity = "warning" if value > _FAR_WORSE * guess else "note"
            of = {"classes": logits.shape[1], "guess": guess}
            of["spread"] = float(logits.double().std(1).mean())
            yield measured("worse-than-guessing", "", value, severity, **of)
            return

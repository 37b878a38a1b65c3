"""Explain constructor arguments that a layer does not have, other libraries' names among them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping

from tracetorch.core.checks import suggestion

_THRESHOLDS = ("pos_threshold", "neg_threshold", "pos_threshold_setup", "neg_threshold_setup")
_SURROGATES = (
    "surrogate_derivative",
    "pos_surrogate_derivative",
    "neg_surrogate_derivative",
    "pos_threshold_setup",
    "neg_threshold_setup",
)
_RESTING = (
    "the membranes of tt.snn rest at 0; tt.neurons.EIF, QIF and AdEx have a resting voltage, v_rest"
)
_KEPT = "a layer always keeps its states; zero_states() clears them"

# names of snnTorch, SpikingJelly and Norse, and those that a layer may have for the same
_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("threshold", "v_threshold", "v_th", "thresh"), _THRESHOLDS),
    **dict.fromkeys(("spike_grad", "surrogate_function", "surrogate", "spike_fn"), _SURROGATES),
    "learn_threshold": ("learn_pos_threshold", "learn_neg_threshold"),
    **dict.fromkeys(("reset_mechanism", "v_reset", "hard_reset"), ("reset",)),
    **dict.fromkeys(("tau", "tau_mem", "decay"), ("beta", "beta_setup")),
    "decay_input": ("beta_ema", "beta_setup"),
    **dict.fromkeys(("size", "features", "num_features", "hidden_size"), ("num_neurons",)),
}
# attributes that have another name than the argument of the constructor
_ATTRIBUTES = dict.fromkeys(
    (*_SURROGATES[:3], *[key for key, names in _NAMES.items() if names is _SURROGATES]),
    ("pos_spike", "neg_spike", "spike"),
)
ASSIGNED = frozenset((*_NAMES, *_ATTRIBUTES))
"""Names that an assignment may mean a parameter or an option by."""
_PACKAGE = __name__.partition(".")[0]
# what else there is to know, also of arguments that no layer has
_NOTES = {
    "reset_mechanism": '"subtract", "zero" or "none"',
    "v_reset": '"zero" for a reset to zero, "subtract" for v_reset=None',
    "hard_reset": '"zero" for a hard reset, "subtract" for a soft one',
    "tau": "beta = 1 - 1 / tau; beta_ema=True where the input is divided by tau too",
    **dict.fromkeys(("v_rest", "v_leak"), _RESTING),
    "init_hidden": _KEPT,
    "hidden": _KEPT,
    "output": "a layer returns its output alone; its states are attributes, layer.mem",
    "reset_delay": "the reset acts in the step of its spike",
    "step_mode": "a call is one step; tt.unroll(model, x) runs a sequence",
    "backend": "tt.fuse.backend(...) chooses one",
    "store_v_seq": 'tt.unroll(model, x, record="mem") returns the membrane over time',
    "beta_ema": "the averaging is fixed here; "
    'LeakyIntegrator(..., beta_setup={"use_averaging": False}) has the choice',
}


def check_arguments(cls: type, kwargs: Mapping[str, object]) -> None:
    """Raise ``TypeError`` for arguments that the constructor of ``cls`` does not have."""
    # a decorator of __init__ may take more than what it wraps
    signature = inspect.signature(cls.__init__, follow_wrapped=False)  # type: ignore[misc]
    parameters = list(signature.parameters.values())[1:]
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    allowed = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
    unknown = [name for name in kwargs if name not in allowed]
    if unknown:
        explained = " ".join(_explained(cls.__name__, name, allowed) for name in unknown)
        raise TypeError(f"{explained} It takes {', '.join(allowed)}.")


def check_assigned(layer: object, name: str, own: Collection[str]) -> None:
    """Raise ``AttributeError`` where an assignment to a layer of this package would do nothing.

    A class of the user's may have attributes of any name.
    """
    kind = type(layer)
    names = [each for each in _ATTRIBUTES.get(name, _NAMES.get(name, ())) if each in own]
    if names and kind.__module__.partition(".")[0] == _PACKAGE:
        note = f"; {_NOTES[name]}" if name in _NOTES else ""
        raise AttributeError(
            f"{kind.__name__} has no attribute {name!r} to assign; here it is "
            f"{' or '.join(names)}{note}."
        )


def _explained(label: str, name: str, allowed: list[str]) -> str:
    """Write the sentence on one argument: its name here, a note, or the nearest name."""
    names = [each for each in _NAMES.get(name, (f"{name}_setup",)) if each in allowed]
    parts = [f"{label} has no argument {name!r}"]
    if names:
        parts.append(f"here it is {' or '.join(names)}")
    # a note on an argument goes with the argument, one without a name here stands alone
    if name in _NOTES and (names or name not in _NAMES):
        parts.append(_NOTES[name])
    known = len(parts) > 1
    return f"{'; '.join(parts)}." + ("" if known else suggestion(name, allowed))

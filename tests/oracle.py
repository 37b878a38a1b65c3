"""Independent NumPy simulator of a LeakyIntegrator, one neuron at a time.

Written from the equations of the documentation, not from the code, and slow on purpose.
"""

import numpy as np

Array = np.ndarray


def simulate(
    x: Array, dim: int, parameters: dict[str, Array], averaging: dict[str, bool], reset: str
) -> tuple[Array, dict[str, Array]]:
    """Compute outputs ``[T, ...]`` and last states for inputs ``[T, ...]``.

    ``parameters`` holds the constrained values of the parts there are, scalar or one per neuron;
    ``neg_threshold`` is negative.
    """
    out = np.empty_like(x)
    states = {name: np.zeros_like(x[0]) for name in ("mem", "syn", "rec", "prev_output")}
    for place in np.ndindex(*x.shape[1:]):
        neuron = place[dim]
        p = {k: float(v if v.ndim == 0 else v[neuron]) for k, v in parameters.items()}
        mem = syn = rec = prev = 0.0
        for t in range(len(x)):
            index = (t, *place)
            current = float(x[index])
            if "gamma" in p:
                rec = p["gamma"] * rec + (1 - p["gamma"] if averaging["gamma"] else 1) * prev
            if "alpha" in p:
                syn = p["alpha"] * syn + (1 - p["alpha"] if averaging["alpha"] else 1) * current
                current = syn
            drive = current + p.get("rec_weight", 0.0) * rec + p.get("bias", 0.0)
            mem = p["beta"] * mem + (1 - p["beta"] if averaging["beta"] else 1) * drive
            output = 0.0
            if "pos_threshold" in p:
                spike = 1.0 if mem - p["pos_threshold"] > 0 else 0.0
                if reset == "subtract":
                    mem = mem - spike * p["pos_threshold"]
                elif reset == "zero":
                    mem = mem * (1 - spike)
                output += p.get("pos_scale", 1.0) * spike
            if "neg_threshold" in p:
                spike = -1.0 if p["neg_threshold"] - mem > 0 else 0.0
                if reset == "subtract":
                    mem = mem + spike * p["neg_threshold"]
                elif reset == "zero":
                    mem = mem * (1 + spike)
                output += p.get("neg_scale", 1.0) * spike
            if "pos_threshold" not in p and "neg_threshold" not in p:
                output = mem
            prev = output
            out[index] = output
        for name, value in (("mem", mem), ("syn", syn), ("rec", rec), ("prev_output", prev)):
            states[name][place] = value
    return out, states

"""Save a neuron as an interactive HTML page: sliders, traces, spikes and the surrogate gradient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tracetorch.core.checks import check_integer, check_unsharded
from tracetorch.core.files import atomic_replace
from tracetorch.plot.html_page import check_title, html_page, json_element
from tracetorch.plot.playground_data import Sources, describe_neuron
from tracetorch.snn.neuron import Neuron, has_step
from tracetorch.snn.sequence_layer import SequenceLayer

TEMPLATES = Path(__file__).parent / "playground"


def save_playground(
    layers: SequenceLayer | Mapping[str, SequenceLayer],
    path: str | Path,
    *,
    title: str = "Neuron playground",
    neuron: int = 0,
) -> None:
    """Write a neuron as one self-contained HTML page to play with: no server, no network.

    The page has a slider for each parameter of the layer, decays as half-lives, and an input that
    is drawn by hand, or pulses, noise or a constant, in a unit in which the neuron fires, 1, 10,
    100 or 1000. It shows the states, the spikes, and the surrogate gradient of a chosen output or
    state with respect to the input at every step and to every parameter. What it computes is
    printed from ``step`` and from its derivative, as the kernels are, in float64. It writes the
    Python line that makes the neuron; the fragment of its address holds all settings.

    Args:
        layers: a layer of any class with a ``step`` that can be compiled, or several by their names
            on the page.
        path: path of the file; an existing one is replaced only when all is written.
        title: title of the page.
        neuron: the neuron of the layer with whose parameters the sliders begin.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a layer has no ``step``, as :class:`tt.snn.Noise` and delays have none, or
            cannot be compiled, with the reason; there is none, or no such neuron.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_playground(LIF(1, beta=0.8), f"{folder}/lif.html")
        ...     print(Path(folder, "lif.html").read_text()[:15])
        <!doctype html>
    """
    check_title("save_playground", title)
    neuron = check_integer("save_playground: neuron", neuron)
    named = layers if isinstance(layers, Mapping) else {type(layers).__name__: layers}
    if not named:
        raise ValueError("save_playground: there are no layers in the mapping.")
    neurons_of: dict[str, Neuron] = {}
    for name, layer in named.items():
        neurons_of[name] = _checked(name, layer)
    sources = Sources()
    neurons = [
        describe_neuron("save_playground", name, layer, neuron, sources)
        for name, layer in neurons_of.items()
    ]
    data = json_element("playground", {"title": title, "neurons": neurons})
    script = f"<script>\n{sources.script()}\n</script>"
    page = html_page(TEMPLATES, title, f"{data}\n{script}")
    with atomic_replace(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _checked(name: object, layer: object) -> Neuron:
    """Return a layer whose step the page can run, with its values; raise for any other."""
    if not isinstance(name, str) or not isinstance(layer, SequenceLayer):
        raise TypeError(
            "save_playground: layers must be an snn.Neuron, or a mapping from names to them, "
            f"got {name!r}: {type(layer).__name__}."
        )
    check_unsharded(layer, "save_playground")
    title = repr(layer).partition("(\n")[0]  # without the modules inside
    if not has_step(layer):
        inside = [name for name, part in layer.named_children() if isinstance(part, Neuron)]
        hint = f" Show the neuron inside, layer.{inside[0]}." if inside else ""
        raise ValueError(
            f"save_playground: {title} has no step, the equations that the page runs.{hint}"
        )
    if any(t.is_meta for t in (*layer.parameters(), *layer.buffers())):
        raise ValueError(
            f"save_playground: {title} is on the device meta, where parameters have no "
            'values. Call layer.to_empty(device="cpu"), and load them.'
        )
    return layer

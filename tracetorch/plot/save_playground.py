"""Save a neuron, or a small network, as an interactive HTML page: sliders, traces, gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tracetorch.core.checks import check_integer
from tracetorch.core.html_page import json_element, write_page
from tracetorch.plot.network_data import describe_data, describe_network, network_tries
from tracetorch.plot.playground_data import Sources, describe_neuron
from tracetorch.plot.playground_story import PAIRS, TRIES, described_tries
from tracetorch.snn.neuron import has_step
from tracetorch.snn.sequence_layer import SequenceLayer

TEMPLATES = Path(__file__).parent
_SHARED = ("controls.css", "controls.js", "links.js", "stimuli.js", "drawing.js", "playhead.js")
_PARTS = {  # beside those that both pages share
    "playground": ("settings", "run", "rows", "panels", "knobs", "pair", "story"),
    "network": ("engine", "settings", "builder", "layers", "panels", "story"),
}


def save_playground(
    layers: SequenceLayer
    | nn.Sequential
    | Mapping[str, SequenceLayer]
    | Mapping[str, nn.Sequential],
    path: str | Path,
    *,
    title: str | None = None,
    neuron: int = 0,
    data: tuple[Tensor, Tensor] | Mapping[str, tuple[Tensor, Tensor]] | None = None,
    held_out: tuple[Tensor, Tensor] | Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Write a neuron, or a small network, as one self-contained HTML page: no server, no network.

    The page of a neuron has a slider for each parameter of the layer, decays as half-lives, and an
    input that is drawn by hand, or pulses, noise or a constant, in a unit in which the neuron
    fires, 1, 10, 100 or 1000. It shows the states, the membrane before its reset, the spikes, and,
    after a click, the surrogate gradient of a chosen output or state with respect to the input at
    every step and to every parameter; beside them the spikes of constant inputs, and the plane of
    two states. A second neuron may stand beside it, of this kind or of another one on the page,
    with a weight in either direction, as in a :class:`tt.snn.Recurrent`. It writes the Python that
    makes the neuron, or both. The fragment of its address holds all settings.

    The page of a network shows what every layer does with an input, and with ``data`` it trains:
    backpropagation through time of the cross entropy of the outputs' means over time, by Adam, on
    all samples at once, with the loss, also that of samples ``held_out``, with a map of the plane
    where there are two features, and with what flows back to every neuron. Several networks are a
    choice; hidden layers that are alike can be more, and wider, with weights that the page draws.
    It writes the Python of network and training.

    What either computes is printed from ``step`` and from its derivative, as the kernels are, in
    float64.

    Args:
        layers: a layer of any class with a ``step`` that can be compiled, or several by their names
            on the page; or a network, a ``Sequential`` of ``nn.Linear`` and such layers, of which
            the page begins with the weights, or several by their names, for the same data.
        path: path of the file; an existing one is replaced only when all is written.
        title: title of the page; "Neuron playground" or "Network playground" by default.
        neuron: the neuron of the layer with whose parameters the sliders begin.
        data: what a network learns, inputs and labels, or several such pairs by their names.
        held_out: pairs like those of ``data``, by the same names, that it does not learn.

    Shape:
        Inputs ``[T, B, features]``, labels ``[B]``, from 0 to the network's outputs less one.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a layer has no ``step``, as :class:`tt.snn.Noise` and delays have none, or
            cannot be compiled, with the reason; there is none, or no such neuron; a parameter is
            not finite; layers of a network do not fit each other, or its data, or share parameters.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_playground(LIF(1, beta=0.8), f"{folder}/lif.html")
        ...     print(Path(folder, "lif.html").read_text()[:15])
        <!doctype html>
    """
    neuron = check_integer("save_playground: neuron", neuron)
    sources = Sources()
    single = "network" if isinstance(layers, nn.Sequential) else type(layers).__name__
    named: Mapping[Any, Any] = layers if isinstance(layers, Mapping) else {single: layers}
    is_network = bool(named) and all(isinstance(each, nn.Sequential) for each in named.values())
    allowed = nn.Sequential if is_network else SequenceLayer
    for name, each in named.items() or [("layers", layers)]:
        if not isinstance(name, str) or not isinstance(each, allowed):
            raise TypeError(
                "save_playground: layers must be an snn.Neuron, a mapping from names to them, or "
                f"an nn.Sequential of nn.Linear and neurons, got {name!r}: {type(each).__name__}."
            )
    if is_network:
        if neuron:
            raise ValueError(f"save_playground: neuron is for a single layer, got {neuron}.")
        kind, texts = "network", _network(named, data, held_out, sources)
    elif data is not None or held_out is not None:
        raise ValueError(f"save_playground: data are for a network, nn.Sequential, got {single}.")
    else:
        kind, texts = "playground", _neurons(named, neuron, sources)
    if title is None:
        title = f"{'Neuron' if kind == 'playground' else 'Network'} playground"
    element = json_element(kind, {"title": title, **texts})
    script = f"<script>\n{sources.script()}\n</script>"
    shared = [TEMPLATES / "parts" / name for name in _SHARED]
    own = [TEMPLATES / kind / f"{name}.js" for name in _PARTS[kind]]
    data_elements = f"{element}\n{script}"
    write_page(path, "save_playground", TEMPLATES / kind, title, data_elements, [*shared, *own])


def _neurons(layers: Mapping[str, Any], neuron: int, sources: Sources) -> dict[str, object]:
    for layer in layers.values():
        if not has_step(layer):
            raise ValueError(
                f"save_playground: {type(layer).__name__} has no step, the equations that the page "
                "runs. Of a Recurrent show the neuron inside."
            )
    described = [describe_neuron(name, layer, neuron, sources) for name, layer in layers.items()]
    units = {each["label"]: each["unit"] for each in described}
    return {
        "neurons": described,
        "tries": described_tries(TRIES, layers, units),
        "pairs": described_tries(PAIRS, layers, units),
    }


def _network(
    networks: Mapping[str, nn.Sequential], data: object, held_out: object, sources: Sources
) -> dict[str, object]:
    if data is None and held_out is not None:
        raise ValueError("save_playground: held_out is measured beside data, got none. Give both.")
    trains = data is not None
    described = {
        name: describe_network(model, sources, trains=trains) for name, model in networks.items()
    }
    ends = [(name, each[0]["inputs"], each[-1]["size"]) for name, each in described.items()]
    first, inputs, outputs = ends[0]
    for name, *sizes in ends:
        if sizes != [inputs, outputs]:
            raise ValueError(
                f"save_playground: network {name!r} has {sizes[0]} inputs and {sizes[1]} outputs, "
                f"and {first!r} {inputs} and {outputs}. Networks of one page take the same data."
            )
    sets = describe_data(data, held_out, inputs, outputs) if trains else []
    tries = network_tries(networks, [each["name"] for each in sets])
    listed = [{"name": name, "layers": each} for name, each in described.items()]
    return {"networks": listed, "sets": sets, "tries": tries}

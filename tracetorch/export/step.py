"""One time step as a program: states go in, and come out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tracetorch.core.checks import check_module
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import pytree
from tracetorch.core.walk import hidden_modules
from tracetorch.export.explained import explained
from tracetorch.export.port import Port
from tracetorch.export.probe import BATCHES, Probed, probe, resized
from tracetorch.snn.states import get_states, named_neurons, set_states
from tracetorch.unrolling.inputs import call, parse_inputs


def step(model: nn.Module, sample: Any) -> ExportedProgram:
    """Export one time step of ``model`` as a program whose states are explicit.

    ::

        y, states = program.module()(x, states)

    ``states`` is a flat dict, in and out, named as by ``tt.get_states``;
    ``tt.export.initial_states`` makes the zeros of the first step. The batch is free. The program
    is that of the model in eval mode, without gradients: a spike is ``u > 0``, and the constrained
    parameters of the neuron layers are constants in it, so that no other runtime's sigmoid can
    move a threshold. The model is left as it was.

    Args:
        model: any module whose call is one time step.
        sample: an input of one step, batch first: a tensor, a tuple (``model(*sample)``) or a dict
            (``model(**sample)``) of them, and so is the program's ``x``. Only its shape matters,
            the size of the batch does not.

    Shape:
        ``sample`` ``[B, ...]``; ``x`` and ``y`` the same for any other ``B``.

    Raises:
        TypeError: ``model`` is not a module, or ``sample`` holds anything but tensors.
        ValueError: the model keeps something from step to step that is not a state of a neuron
            layer, asks whether a state is ``None``, changes its input in place, or fixes the size
            of its batch; or as the model.

    Example:
        >>> from tracetorch.export.initial import initial_states
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3))
        >>> program = step(net, torch.rand(1, 4))
        >>> states = initial_states(program, batch=8)
        >>> y, states = program.module()(torch.rand(8, 4), states)
        >>> y.shape, {name: list(state.shape) for name, state in states.items()}
        (torch.Size([8, 3]), {'1.mem': [8, 3]})
    """
    return exported(model, sample)[0]


def exported(model: nn.Module, sample: Any) -> tuple[ExportedProgram, Probed]:
    """What :func:`step` gives, and the shapes of the states."""
    check_module(model)
    given = parse_inputs(sample, 1, 0, True).tensors
    probed = probe(model, given)
    batch = Dim("batch")
    dynamic = (
        pytree.tree_map(lambda _: {0: batch}, given),
        {name: free_sizes(port, batch) for name, port in probed.states.items()},
    )
    example = (
        resized(given, BATCHES[0]),
        {name: port.zeros(BATCHES[0], _device(given)) for name, port in probed.states.items()},
    )
    _check_rest(model, given, probed)
    with (
        restored(model, tensors=False, training=False),
        torch.no_grad(),
        explained(model, RuntimeError),
    ):
        program = torch.export.export(
            ExplicitStep(model, probed), example, dynamic_shapes=dynamic, strict=False
        ).run_decompositions({})
    return program, probed


def _check_rest(model: nn.Module, given: Any, probed: Probed) -> None:
    """Raise where a step from rest is another than from zeros, which is all that a program has."""
    leaves: list[Tensor] = pytree.tree_leaves(given)
    if any(leaf.is_meta or not len(leaf) for leaf in leaves):
        return
    results = []
    with restored(model, tensors=False, training=False), torch.no_grad():
        zeros = {name: p.zeros(len(leaves[0]), _device(given)) for name, p in probed.states.items()}
        for states in ({}, zeros):
            set_states(model, states)
            y = call(model, pytree.tree_map(torch.clone, given))
            results.append(pytree.tree_leaves((y, get_states(model))))
    for rest, other in zip(*results, strict=True):
        if not isinstance(rest, Tensor):
            continue
        if not torch.allclose(rest, other, 1e-5, 1e-6, equal_nan=rest.is_floating_point()):
            raise ValueError(
                f"{type(model).__name__} gives another first step where its states are None than "
                "from states of zeros: its forward seems to ask for them. An exported program "
                "always starts from zeros; let forward not depend on a state being None."
            )


class ExplicitStep(nn.Module):
    """A model as the pure function that is traced.

    Args:
        model: the model.
        probed: its states and its constants.
    """

    def __init__(self, model: nn.Module, probed: Probed) -> None:
        super().__init__()
        self.model = model
        # what is not registered would be taken for constants
        self.hidden = nn.ModuleList(module for _, module in hidden_modules(model))
        self._names = tuple(probed.states)
        self._options: dict[tuple[str, int, torch.dtype], dict[str, Any]] = {}
        self._constants: dict[tuple[str, int, torch.dtype], dict[str, str]] = {}
        for asked, arguments in probed.arguments.items():
            path, *rest = asked
            self._options[asked], self._constants[asked] = {}, {}
            for name, value in arguments.items():
                if isinstance(value, Tensor):
                    # a slash, for buffers may have no dot in their names
                    key = f"{path.replace('.', '/')}/{name}"
                    key = "/".join(map(str, (key, *rest))) if key in self._buffers else key
                    self.register_buffer(key, value.detach())
                    self._constants[asked][name] = key
                else:
                    self._options[asked][name] = value

    def forward(self, x: Any, states: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Outputs and next states of one step."""
        with restored(self.model, tensors=False, training=False):
            for path, layer in named_neurons(self.model):
                for name in layer.active_states:
                    setattr(layer, name, states.get(f"{path}.{name}" if path else name))
                layer.mark_states_current()
                vars(layer)["step_kwargs"] = self._giving(path)
            y = call(self.model, x)
            after = get_states(self.model, detach=False)
        given = [leaf for leaf in pytree.tree_leaves((x, states)) if isinstance(leaf, Tensor)]
        # a state that stands still is a result too, not the input itself
        return y, {
            name: after[name].clone() if _is_one_of(after[name], given) else after[name]
            for name in self._names
        }

    def _giving(self, path: str) -> Any:
        def arguments(ndim: int, dtype: torch.dtype) -> dict[str, Any]:
            asked = (path, ndim, dtype)
            constants = {name: getattr(self, key) for name, key in self._constants[asked].items()}
            return {**self._options[asked], **constants}

        return arguments


def free_sizes(port: Port, batch: Any) -> dict[int, Any]:
    """The sizes of a state that follow the batch, as ``torch.export`` wants them."""
    free: dict[int, Any] = {}
    for dim, size in enumerate(port.shape):
        if isinstance(size, str):
            factor = port.sizes(1)[dim]
            free[dim] = batch if factor == 1 else factor * batch
    return free


def _is_one_of(value: Tensor, others: list[Tensor]) -> bool:
    return any(value is other for other in others)


def _device(given: Any) -> torch.device:
    leaves: list[Tensor] = pytree.tree_leaves(given)
    return leaves[0].device

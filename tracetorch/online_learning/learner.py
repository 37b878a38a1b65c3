"""Step a model with a learning rule in place of backpropagation through time: ``online``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_has_values, suggestion
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import exclude_from_compile
from tracetorch.core.walk import named_parameters
from tracetorch.online_learning.rules import RULES, Rule
from tracetorch.online_learning.step import DroppedPath, Step
from tracetorch.online_learning.traces import LearnerState
from tracetorch.probe.layers import neuron_layers
from tracetorch.snn.module import layer_label, zero_states
from tracetorch.snn.passes import current_pass
from tracetorch.snn.sequence_layer import SequenceLayer
from tracetorch.snn.states import ExtraStates, named_holders
from tracetorch.unrolling import unroll
from tracetorch.unrolling.inputs import call, parse_inputs
from tracetorch.unrolling.stream import check_can_go_on


def online(model: nn.Module, rule: Rule = "exact") -> OnlineLearner:
    """Learn online: step a model so that ``backward()`` at each step needs no step before it.

    Instead of the graph of all steps, eligibility traces are carried along: the derivatives of
    every state by what drives it. With the states ``s`` of one lane (a neuron of a sample), which
    ``step`` maps to those of the next step, and a parameter or weight ``w``::

        e[t] = (ds[t] / ds[t-1]) e[t-1] + ds[t] / dw          a block of S x S for S states
        dloss[t] / dw = (dloss[t] / ds[t-1]) e[t-1] + (what one step's graph gives)

    Any neuron with a pointwise ``step`` will do, for autograd differentiates it. For which weights
    there are traces says :class:`~tracetorch.online_learning.OnlineLearner`. The rules, from the
    most to the least exact:

    - ``"exact"``: real-time recurrent learning, in blocks. The gradients are those of
      backpropagation through time: for one layer of neurons, or a layer and a readout whose decays
      are alike. Where they cannot be, the first such step raises and names the paths.
    - ``"eprop"``: the block without the reset: a spike is a constant in the next value of a state
      that it resets. What it does to other states, an adaptation or a recurrent trace, stays. For
      an adaptive threshold ``a`` of strength ``beta``, with the surrogate's derivative ``psi``,
      that is the rule of the paper::

          eps_a[t+1] = psi[t] eps_v[t] + (rho - psi[t] beta) eps_a[t]
          e[t] = psi[t] (eps_v[t] - beta eps_a[t])

      A neuron names the states that it resets, ``reset_states = ("mem",)``; without that they are
      all that its input reaches other than by spikes. ``dropped`` lists those with a reset.
    - ``"ottt"``: the block without any derivative of a spike, with one trace for all neurons of a
      layer, of its inputs alone, and no filter: between layers gradients go through the graph of
      one step.
    - ``"local"``: no traces; every state is a constant, so gradients know of one step alone.

    Args:
        model: any module with neuron layers, whose call is one step.
        rule: one of the four.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no neuron layer, or there is no such rule.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2))
        >>> learner = online(net)
        >>> for x in torch.rand(1000, 8, 4):
        ...     learner(x).square().sum().backward()  # adds this step's part to .grad
        >>> learner.dropped
        ()
        >>> learner.zero_states()
    """
    return OnlineLearner(model, rule)


class OnlineLearner(ExtraStates):
    """A model that is stepped with eligibility traces; :func:`online` describes the rules.

    A call is one step, and its output is part of a graph of this step alone. The states of before
    enter it as functions of the parameters whose derivatives are the traces, so an ordinary
    ``backward()`` gives the rule's gradients, at each step or of a sum over some of them. States
    that the model holds before the first step are constants. Later they are zeroed through the
    learner, so that traces go with them.

    There are traces for the parameters of every neuron layer, and for the weights of the
    ``nn.Linear`` or ``nn.Conv2d`` before it, where everything between the two is pointwise, and of
    a linear connection in :class:`~tracetorch.snn.Recurrent`. With ``"exact"`` and ``"eprop"`` the
    traces of a layer are filtered by the layer behind the next ``nn.Linear``, a leaky readout say,
    with the mean of its decays: that is exact where they are all alike (``beta_rank=0``).

    A forward hook is followed like any operation behind its module, a backward hook is refused, and
    one that ``forward`` registers on a tensor is called for each trace too: let none be there.

    Memory does not depend on the number of steps. It is ``S * B * N * K`` values for a batch of
    ``B`` and ``N`` neurons with ``K`` inputs, ``S * B * K`` with ``"ottt"``; for a convolution
    there is one more factor, the places, and as much again for each state of a filter.

    Traces travel with the learner: in copies, by ``pickle`` and ``torch.save``. They are no states:
    those of ``get_states``, or of a file, are constants to go on from, after ``detach_states()``
    where there were traces. What a parameter does in steps in which it is frozen is left out of its
    trace, as backpropagation leaves it out of the gradient.

    Arguments and errors are those of :func:`online`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), LIF(3), nn.Linear(3, 2), Readout(2))
        >>> learner = OnlineLearner(net, "eprop")
        >>> learner(torch.rand(8, 4)).shape
        torch.Size([8, 2])
        >>> for path in learner.dropped:
        ...     print(path)
        1 -> states of 1: the reset of mem by a spike is a constant

    Sources: Williams and Zipser, "A learning algorithm for continually running fully recurrent
    neural networks", Neural Computation 1 (1989); Bellec et al., "A solution to the learning
    dilemma for recurrent networks of spiking neurons", Nature Communications 11, 3625 (2020);
    Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022;
    ``"local"`` is the rule of Meng et al., "Towards memory- and time-efficient backpropagation for
    training spiking neural networks", ICCV 2023.
    """

    def __init__(self, model: nn.Module, rule: Rule = "exact") -> None:
        super().__init__()
        layers = neuron_layers(model)
        if rule not in [*RULES]:  # which a rule of any type is compared with
            raise ValueError(
                f"there is no rule {rule!r}.{suggestion(rule, RULES)} There are "
                f"{', '.join(map(repr, RULES))}."
            )
        for path, module in named_holders(model):
            if not isinstance(module, SequenceLayer):
                raise ValueError(
                    f"{layer_label(module, path)} keeps a memory of its own, "
                    f"{' and '.join(map(repr, module.active_states))}, which no trace follows. "
                    "Feed outputs back by snn.Recurrent, or train by backpropagation through time."
                )
        check_has_values(model)
        self.model = model
        self.rule = rule
        self._state = LearnerState(model, layers, RULES[rule])
        self._dropped: dict[DroppedPath, None] = {}

    @property
    def dropped(self) -> tuple[DroppedPath, ...]:
        """The paths through time that the rule has dropped or changed, in the steps so far."""
        return tuple(self._dropped)

    def extra_repr(self) -> str:
        """Name the rule."""
        return f"rule={self.rule!r}"

    @exclude_from_compile
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step of the model, and advance the traces; ``torch.compile`` leaves it as it is.

        Raises:
            ValueError: gradients are disabled; the call is inside a transform of ``torch.func`` or
                inside ``backward()``; the model has other neuron layers than before; a state was
                set from outside between two steps; an input is NaN or infinite, or a state becomes
                so; a layer is called twice in a step, or has a ``step`` that is not pointwise; a
                module has a backward hook; or the rule is ``"exact"`` and the gradients would not
                be. States and traces are as before then, but not what else ``forward`` changes.
        """
        outer = current_pass()
        if outer is not None and outer.folded and outer.running is None:
            raise ValueError(
                "an online learner takes one step at a time: call it in a loop, or use "
                'tt.unroll(learner, x, by="step").'
            )
        if not torch.is_grad_enabled():
            raise ValueError(
                "an online learner needs gradients, which are disabled here. To evaluate, call the "
                "model itself; tt.recipe and tt.diagnose take learner.model."
            )
        check_can_go_on(
            "an online learner", "It keeps no graph of earlier steps, so leave checkpointing out."
        )
        step = Step(self._state)
        y = step.call(step.run, args, kwargs)
        step.commit()
        self._state.replace(step.traces, step.filters)
        self._dropped.update(step.dropped)
        return y

    def zero_states(self, *, where: Tensor | None = None) -> None:
        """Set states and traces to zero, with ``where`` those of some samples.

        Args, Raises: as :meth:`tracetorch.snn.TTModule.zero_states`.
        """
        super().zero_states(where=where)
        if where is None:
            self._state.replace({}, {})
        else:
            self._state.change(lambda path, traces: traces.restarted(where))

    def detach_states(self) -> None:
        """Make constants of the states: the traces start anew from them."""
        super().detach_states()
        self._state.replace({}, {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OnlineLearner:
        """Move the traces along with the states."""
        fits = all(map(self._state.fits, self._state.traces))
        super()._apply(fn, recurse)
        if fits:
            self._state.follow_states()
        return self

    def certificate(
        self, batch: Sequence[Any], loss: Callable[..., Tensor], *, steps: int | None = None
    ) -> dict[str, float]:
        """Compare the rule's gradients with those of backpropagation through time on a batch.

        Both start from rest. States, traces and gradients stay as they are; :attr:`dropped` lists
        what the rule drops on the batch, too.

        Args:
            batch: a tuple of the input, as for ``tt.unroll``, and the other arguments of the loss.
            loss: ``loss(y, *rest)``, a scalar tensor, where ``y`` is the output ``[T, B, ...]``.
            steps: as for ``tt.unroll``.

        Returns:
            The cosine between the two gradients by parameter: 1 where they agree in direction, 0
            where they have nothing in common, or where one of them is zero.

        Raises:
            TypeError: ``batch`` is not a tuple.
            ValueError: as :func:`tracetorch.unroll`, or as a step of the learner.

        Example:
            >>> net = nn.Sequential(nn.Linear(4, 9), LIF(9), nn.Linear(9, 2), Readout(2))
            >>> batch = 5 * torch.rand(20, 8, 4), torch.arange(8) % 2
            >>> def loss(y, target):
            ...     return nn.functional.cross_entropy(y.mean(0), target)
            >>> cosines = online(net, "eprop").certificate(batch, loss)
            >>> {name: round(cosine, 3) for name, cosine in cosines.items() if name[0] in "23"}
            {'2.weight': 1.0, '2.bias': 1.0, '3.raw_beta': 1.0}
        """
        x, rest = split_batch(batch)
        inputs = parse_inputs(x, steps)
        parameters = {n: p for n, p in named_parameters(self.model).items() if p.requires_grad}

        def gradients(y: Tensor) -> list[Tensor]:
            found = torch.autograd.grad(
                loss(y, *rest), list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            return [each.detach().double() for each in found]

        # whatever the caller's mode: gradients are what is compared
        with torch.inference_mode(False), torch.enable_grad():
            with restored(self.model):
                y = unroll(self.model, x, steps=steps, by="step", from_rest=True)
                expected = gradients(y)
            with restored(self.model):
                zero_states(self.model)
                learner = OnlineLearner(self.model, self.rule)
                found = gradients(torch.stack([call(learner, each) for each in inputs.each_step()]))
        self._dropped.update(learner._dropped)
        cosines = {}
        for name, a, b in zip(parameters, found, expected, strict=True):
            norms = float(a.norm() * b.norm())
            cosines[name] = float((a * b).sum()) / norms if norms > 0 else 0.0
        return cosines


def split_batch(batch: Sequence[Any]) -> tuple[Any, list[Any]]:
    if isinstance(batch, Tensor) or not isinstance(batch, Sequence) or not batch:
        raise TypeError(
            "batch must be a tuple of the input and the other arguments of the loss, (x, target), "
            f"got {'a tensor' if isinstance(batch, Tensor) else repr(batch)}."
        )
    x, *rest = batch
    return x, rest

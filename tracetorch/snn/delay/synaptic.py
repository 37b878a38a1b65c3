"""``DelayedLinear``, ``DelayedConv1d``: products with a learnable delay for every weight."""

from __future__ import annotations

import math
import operator
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from torch import Tensor, nn

from tracetorch.core.checks import check_count, check_flag, check_integer, is_sharded
from tracetorch.core.convolution import output_size
from tracetorch.core.hooks import hooked_weights
from tracetorch.snn.connectivity import plain_class
from tracetorch.snn.delay.base import DelayingLayer, initial_delays, taps
from tracetorch.snn.parameters import Value
from tracetorch.snn.passes import weight_in_loop


class SynapticDelays(DelayingLayer):
    """Base of layers with a delay for every weight: products that are convolutions over time.

    The product, a submodule, holds weight and bias; its own forward is not called.
    """

    _forwards: ClassVar[tuple[Any, ...]] = (nn.Linear.forward, nn.Conv1d.forward)

    def __init__(
        self,
        product: nn.Linear | nn.Conv1d,
        inputs: int,
        dim: int,
        max_delay: int,
        delay: Value | None,
        sigma: float,
        learnable: bool,
    ) -> None:
        max_delay = check_count("max_delay", max_delay)
        raw = initial_delays(delay, tuple(product.weight.shape), max_delay)
        super().__init__(inputs, dim, max_delay, sigma, raw, learnable)

    @property
    def product(self) -> nn.Linear | nn.Conv1d:
        """The layer of weight and bias."""
        raise NotImplementedError

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer."""
        if isinstance(x, Tensor) and x.ndim - sequence >= -self.dim:
            size = x.shape[self.dim]
            if size != self.num_neurons:
                inputs = ("channels in the last but one", "features in the last")[self.dim == -1]
                raise ValueError(
                    f"{self._label()} takes {self.num_neurons} {inputs} dimension, the input has "
                    f"{size}, shape {list(x.shape)}."
                )
        return super()._check_input(x, sequence=sequence)

    def kernel(self, delay: Tensor) -> Tensor:
        """Return the weight of every synapse at every past step, ``[*weight.shape, steps]``."""
        weight = self.product.weight.to(delay.dtype)
        backwards = tuple(reversed(range(weight.ndim)))
        # in memory steps first and outputs last, as products with events read it
        weight, delay = (each.permute(backwards).contiguous() for each in (weight, delay))
        kernel = weight * taps(delay, self.max_delay, self.sigma)
        return kernel.permute(*(n + 1 for n in backwards), 0)

    def kernel_of(self, dtype: torch.dtype) -> Tensor:
        """Return :meth:`kernel` of the delays as they are."""
        self._check_product()
        delay: Tensor = self.step_kwargs(0, dtype)["delay"]
        # whose shape is by then the one that broadcasts the values of neurons
        return self.kernel(delay.reshape(self.product.weight.shape))

    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution over time, the last dimension of ``window``.

        A pass by layer replaces it, where it computes with events.
        """
        raise NotImplementedError

    def _delayed(self, window: Tensor, ndim: int, steps: int) -> Tensor:
        bias, dtype = self.product.bias, window.dtype
        bias = None if bias is None else bias.to(dtype)
        return self.convolve(window, weight_in_loop(self, self.kernel_of, dtype), bias)

    def _check_product(self) -> None:
        """Raise where a call of the product would do more than its class: nobody calls it."""
        product = self.product
        # not the forward of the instance, nor other pre-hooks: tt.unroll has some of its own
        own = type(product).forward in self._forwards
        sharded = not torch.compiler.is_compiling() and is_sharded(product)
        if own and not sharded and not hooked_weights(product):
            return
        (name,) = (name for name, each in self.named_children() if each is product)
        if sharded:
            raise ValueError(
                f"{self._label()} reads the weight of its {name}, and does not call it: FSDP2 "
                f"would not gather what it has sharded. Leave the {name} out, and apply "
                "fully_shard to the whole layer."
            )
        raise ValueError(
            f"{self._label()} reads the weight of its {name}, and does not call it: pruning, an "
            "old weight norm or another forward (an adapter) would have no effect. "
            f"Use torch.nn.utils.parametrize on {name}.weight, or make the pruning permanent."
        )


class DelayedLinear(SynapticDelays):
    """Linear layer with a delay for every synapse, which can be learned.

    ::

        output[t, o] = bias[o] + sum_i  weight[o, i] * sum_k w[o, i, k] * x[t - k, i]

    with the interpolation ``w`` of ``delay[o, i]`` as for :class:`Delay`, where ``sigma``, its
    schedule and ``round_()`` are explained. Weight and bias are those of ``linear``, an
    ``nn.Linear``. Over time it is one convolution, dense in ``k``: time and memory grow with
    ``max_delay``. ``tt.unroll`` by layer computes it with the events of a sparse input, and the
    gradient of the input by Fourier transforms, on the CPU. ``linear`` is read and not called: a
    parametrization of its weight acts, a hook on it is an error or never runs.

    As the connection of a :class:`Recurrent` it delays the feedback beyond the one step that this
    has itself, in one compiled loop on the CPU.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is one.
        max_delay: the largest delay in steps; at least 1.
        delay: initial delays in steps, a number or a tensor ``[out_features, in_features]``;
            ``None`` draws them uniformly between 0 and ``max_delay``.
        sigma: width of the interpolation in steps.
        learnable: whether the delays are learned; the weights are.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``; the state ``past`` is
        ``[..., in_features, max_delay]``.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range, or the input has another number of features.

    Example:
        >>> layer = DelayedLinear(2, 1, bias=False, max_delay=3, delay=torch.tensor([[2.0, 0.0]]))
        >>> _ = nn.init.ones_(layer.linear.weight)
        >>> [layer(torch.tensor([x])).item() for x in ([1.0, 0.0], [0.0, 0.0], [0.0, 1.0])]
        [0.0, 0.0, 2.0]

    Reference: Khalfaoui-Hassani, Pellegrini and Masquelier, Dilated convolution with learnable
    spacings, ICLR 2023; Hammouamri, Khalfaoui-Hassani and Masquelier, Learning delays in spiking
    neural networks using dilated convolutions with learnable spacings, ICLR 2024.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_delay: int,
        delay: Value | None = None,
        sigma: float = 0.0,
        learnable: bool = True,
    ) -> None:
        in_features = check_count("in_features", in_features)
        out_features = check_count("out_features", out_features)
        check_flag("bias", bias)
        linear = nn.Linear(in_features, out_features, bias)
        super().__init__(linear, in_features, -1, max_delay, delay, sigma, learnable)
        self.in_features, self.out_features = in_features, out_features
        self.linear = linear

    @property
    def product(self) -> nn.Linear:
        return self.linear

    def _window(self, past: Tensor, x: Tensor) -> Tensor:
        # features last in memory: products with events read it by steps
        return torch.cat([past.movedim(-1, -2), x.movedim(0, -2)], -2).movedim(-2, -1)

    @property
    def computes_as_its_class(self) -> bool:
        """Whether a step is certain to be a sum over ``kernel_of`` and the last inputs."""
        return (
            type(self) is DelayedLinear
            and plain_class(self.linear) is nn.Linear
            and _code_of(DelayedLinear) == _CODE
            and vars(self).keys().isdisjoint(_OWN)
        )

    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution over time ``[..., out_features, steps]``.

        Args:
            window: ``[..., in_features, max_delay + steps]``.
            kernel: ``[out_features, in_features, max_delay + 1]``.
            bias: ``[out_features]``.
        """
        lead, steps = window.shape[:-2], window.shape[-1] - self.max_delay
        if steps == 0:
            return window.new_zeros(*lead, self.out_features, 0)
        if steps == 1:  # one product, of what lies so in memory
            y = window.transpose(-1, -2).flatten(-2) @ kernel.permute(2, 1, 0).flatten(0, 1)
            return (y if bias is None else y + bias).unsqueeze(-1)
        batch = window.reshape(math.prod(lead), *window.shape[-2:])
        return F.conv1d(batch, kernel, bias).reshape(*lead, self.out_features, steps)


# what a step calls, and a user may have set on a layer or patched in the class
_OWN = ("forward", "forward_step", "_delayed", "_window", "_check_input", "_states_for", "convolve")
_code_of = operator.attrgetter(*_OWN)
_CODE = _code_of(DelayedLinear)


class Places(NamedTuple):
    """The places of a convolution's output."""

    stride: int
    padding: int
    dilation: int
    size: int  # number of outputs


class DelayedConv1d(SynapticDelays):
    """One-dimensional convolution with a delay for every weight, which can be learned.

    ::

        output[t, o, l] = bias[o] + sum_{c, j}  weight[o, c, j]
                          * sum_k w[o, c, j, k] * x[t - k, c, stride * l + dilation * j - padding]

    with the interpolation ``w`` of ``delay[o, c, j]`` as for :class:`Delay`, where ``sigma``, its
    schedule and ``round_()`` are explained. ``l`` is a place, a frequency of a sound say; time is
    not among the dimensions of a step. Weight and bias are those of ``conv``, an ``nn.Conv1d``.
    Over time it is a convolution in two dimensions, place and time: cost as :class:`DelayedLinear`.

    Args:
        in_channels: size of the input at dimension -2.
        out_channels: size of the output there.
        kernel_size: weights along the last dimension.
        stride: from one output to the next.
        padding: zeros at both ends.
        dilation: from one weight to the next.
        groups: of channels, as in ``nn.Conv1d``.
        bias: whether there is one.
        max_delay: the largest delay in steps; at least 1.
        delay: initial delays in steps, a number or a tensor ``[out_channels, in_channels / groups,
            kernel_size]``; ``None`` draws them uniformly between 0 and ``max_delay``.
        sigma: width of the interpolation in steps.
        learnable: whether the delays are learned; the weights are.

    Shape:
        Input ``[..., in_channels, length]``, output ``[..., out_channels, length out]``; the state
        ``past`` is ``[..., in_channels, length, max_delay]``.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: an argument is out of range, or the input has another number of channels.

    Example:
        >>> layer = DelayedConv1d(1, 1, 3, padding=1, bias=False, max_delay=2, delay=1.0)
        >>> _ = nn.init.ones_(layer.conv.weight)
        >>> [layer(torch.tensor([[x]])).tolist()[0] for x in ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0])]
        [[[0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]

    Reference: as for :class:`DelayedLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        max_delay: int,
        delay: Value | None = None,
        sigma: float = 0.0,
        learnable: bool = True,
    ) -> None:
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("kernel_size", kernel_size)
        for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
            check_count(name, value)
        if check_integer("padding", padding) < 0:
            raise ValueError(f"padding must not be negative, got {padding}.")
        check_flag("bias", bias)
        conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        super().__init__(conv, in_channels, -2, max_delay, delay, sigma, learnable)
        self.conv = conv

    @property
    def product(self) -> nn.Conv1d:
        return self.conv

    def _check_input(self, x: object, *, sequence: bool = False) -> torch.dtype:
        """Return the dtype of the arithmetic; raise where ``x`` does not fit the layer."""
        dtype = super()._check_input(x, sequence=sequence)
        shape = cast(Tensor, x).shape
        if self.places(shape[-1]).size < 1:
            raise ValueError(
                f"{self._label()} has a kernel that is longer than the input, shape "
                f"{list(shape)}, with its padding. Pad more, or use a smaller kernel_size."
            )
        return dtype

    def convolve(self, window: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution over places and time ``[..., out_channels, length out, steps]``.

        Args:
            window: ``[..., in_channels, length, max_delay + steps]``.
            kernel: ``[out_channels, in_channels / groups, kernel_size, max_delay + 1]``.
            bias: ``[out_channels]``.
        """
        lead, conv, at = window.shape[:-3], self.conv, self.places(window.shape[-2])
        steps = window.shape[-1] - self.max_delay
        if steps == 0:
            return window.new_zeros(*lead, conv.out_channels, at.size, 0)
        images = window.reshape(math.prod(lead), *window.shape[-3:])
        options = ((at.stride, 1), (at.padding, 0), (at.dilation, 1))
        y = F.conv2d(images, kernel, bias, *options, conv.groups)
        return y.reshape(*lead, *y.shape[1:])

    def places(self, length: int) -> Places:
        """Return the places of the output, and where each of them reads an input."""
        conv, padding = self.conv, int(self.conv.padding[0])
        (stride,), (dilation,), (kernel,) = conv.stride, conv.dilation, conv.kernel_size
        size = output_size(length, kernel, stride, padding, dilation)
        return Places(stride, padding, dilation, size)

"""A compiled sequence of integers is the eager one: outputs, states, every gradient by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import tracetorch as tt
from tests.cases import stepped, weighted_sum
from tracetorch.fuse import unsupported_reason


def assert_compiled_is_eager(eager: Any, x: Tensor) -> Tensor:
    fused = copy.deepcopy(eager)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    assert unsupported_reason("cpu", fused, inputs[1]) is None
    outputs = stepped(eager, inputs[0]), tt.unroll(fused, inputs[1])
    assert torch.equal(*outputs)
    assert outputs[0].any()
    for state in eager.active_states:
        assert torch.equal(getattr(eager, state), getattr(fused, state)), state
    for output in outputs:
        weighted_sum(output).backward()
    for (name, one), other in zip(eager.named_parameters(), fused.parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.any(), name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-8)
    return outputs[0].detach()

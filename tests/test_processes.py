"""What tests run in: the process that forks others, and PyTorch that rounds as elsewhere."""

import subprocess
import sys

import pytest

from tests import processes


def test_a_dead_process_that_forks_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(
        [sys.executable, "-S", "-c", "raise SystemExit(3)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    monkeypatch.setattr(processes, "_server", lambda: server)
    for _ in range(2):  # while it ends, and behind its end
        with pytest.raises(RuntimeError, match="has died, with status 3"):
            processes.run_python("-c", "")
    server.communicate()  # closes its pipes


MOVES = """
import torch
from torch.nn import functional as F

x, w = torch.randn(2, 3, 5), torch.randn(4, 5)
image, kernel = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
short = lambda x: (4 * x).round() / 4
one = F.one_hot(torch.arange(3), 5).float()

def inexact():
    leaf = x.clone().requires_grad_()
    F.linear(leaf, w).sin().sum().backward()
    steps = torch.stack([F.linear(each, w) for each in x])
    made = [F.linear(x, w), steps, x.double() @ w.T.double(), leaf.grad, F.conv2d(image, kernel)]
    return [*made, torch.einsum("tbn,mn->tbm", x, w), x.exp(), x.clone().sigmoid_(), x.abs().sqrt()]

def exact():
    made = [F.linear(short(x), short(w)), F.conv2d(short(image), short(kernel)), one @ w.T]
    return [*made, (x.bfloat16() @ w.T.bfloat16()) * 0, torch.tensor([0.0, 4.0]).sqrt()]

before = inexact(), exact()
from tests import rounding
rounding.install(1)
after = inexact(), exact()
for one, other in zip(before[0], after[0], strict=True):
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=3e-6, atol=3e-6)
assert not torch.equal(after[0][0], after[0][1])  # by the shape
assert all(map(torch.equal, before[1], after[1]))
"""


def test_what_is_rounded_moves_and_what_is_exact_stays() -> None:
    processes.run_python("-c", MOVES)

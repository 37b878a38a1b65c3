"""Train a small network for one step with the installed package, and compare two backends."""

import sys
from pathlib import Path

import torch
from torch import nn

import tracetorch as tt
from tracetorch import snn

installed = Path(tt.__file__).resolve()
if Path(sys.prefix).resolve() not in installed.parents:
    sys.exit(f"{installed} is not the installed package")
if not installed.with_name("py.typed").is_file():
    sys.exit("py.typed is missing")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), snn.LIF(8), nn.Linear(8, 2), snn.Readout(2))
x = torch.rand(10, 3, 4)
fused = tt.unroll(model, x, check=True)
fused.mean().backward()
if model[0].weight.grad is None:
    sys.exit("no gradient reached the first layer")

tt.zero_states(model)
with tt.fuse.backend("eager"):
    torch.testing.assert_close(tt.unroll(model, x), fused)

# the files of the zoo are in the wheel; made-up words need no other package
words = tt.zoo.verify(["words-adlif"], strict=True)
print(words)
print(f"traceTorch {tt.__version__} works as installed")

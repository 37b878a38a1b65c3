"""Use the installed package: train for one step, compare two backends, save, write pages and C."""

import sys
import tempfile
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

# what these write is made of files that are no modules
tt.zero_states(model.eval())
image = {"a dot": torch.eye(8)[None]}
draw = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), snn.LIF(4), nn.Linear(4, 2), snn.Readout(2))
with tempfile.TemporaryDirectory() as folder:
    tt.save(model, f"{folder}/model.safetensors")
    tt.load(f"{folder}/model.safetensors", model)
    tt.plot.save_html({"1.output": torch.rand(5, 1, 3)}, f"{folder}/run.html")
    tt.plot.save_playground(model[1], f"{folder}/neuron.html")
    tt.export.page(draw.eval(), f"{folder}/draw.html", image, steps=3)
    tt.export.c(model, f"{folder}/c", x[:, :1])
    for page in ("run", "neuron", "draw"):
        tt.plot.show_html(f"{folder}/{page}.html")

# the files of the zoo are in the wheel; made-up words need no other package
card, words = tt.zoo.card("words-adlif"), tt.zoo.load("words-adlif").double()
x, y, mask = tt.zoo.sample_batch(card.name, card.batch)
_, seen = tt.unroll(words, x.double(), record=[f"{path}.output" for path in card.spikes])
if {path: seen[f"{path}.output"].sum() for path in card.spikes} != card.spikes:
    sys.exit("a network of the zoo has other spikes than its card")
print(f"traceTorch {tt.__version__} works as installed")

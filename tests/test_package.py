"""Test the package as a whole: import cost, public names, docstrings and pages."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_origin

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracetorch as tt
from tracetorch import snn

ROOT = Path(__file__).parent.parent
PACKAGE = Path(tt.__file__).parent
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages([str(PACKAGE)], "tracetorch.")
    if not info.name.endswith("__main__")
)
WITH_EXAMPLES = [
    name
    for name in MODULES
    for path in [ROOT / name.replace(".", "/")]
    for source in [path.with_suffix(".py"), path / "__init__.py"]
    if source.is_file() and ">>>" in source.read_text()
]


def modules_of(package: Any) -> list[Any]:
    """Public modules of a package, and the modules in those."""
    found = [thing for n in package.__all__ if inspect.ismodule(thing := getattr(package, n))]
    return [inner for module in found for inner in (module, *modules_of(module))]


ROOMS = modules_of(tt)


def test_import_loads_no_heavy_module_and_dir_lists_the_public_names() -> None:
    heavy = "elephant h5py matplotlib mlxtend neo nir numba safetensors torch._dynamo torchmetrics"
    heavy += " torchvision tqdm xarray"
    code = (
        f"import torch, sys; before = set(sys.modules); import tracetorch as tt\n"
        f"print([name for name in {heavy.split()} if name in set(sys.modules) - before])\n"
        f"print(dir(tt) == sorted(tt.__all__))"  # also of what has not been loaded yet
    )
    ran = [sys.executable, "-c", code]
    assert subprocess.check_output(ran, text=True, cwd=ROOT).split() == ["[]", "True"]
    assert all(hasattr(tt, name) for name in dir(tt))


def test_package_is_typed_and_has_a_version_and_the_type_of_spike_functions() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", tt.__version__)
    assert f"## {tt.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert snn.SpikeFunction == Callable[[torch.Tensor], torch.Tensor]
    assert "SpikeFunction" in snn.__all__


@pytest.mark.parametrize("room", [tt, *ROOMS], ids=lambda room: room.__name__)
def test_public_names_are_listed_and_documented(room: Any) -> None:
    assert len(set(room.__all__)) == len(room.__all__)
    for name in room.__all__:
        thing = getattr(room, name)
        # an alias of a type has no docstring of its own
        if get_origin(thing) is None and (isinstance(thing, type) or callable(thing)):
            assert thing.__doc__, name
            assert "Example:" in thing.__doc__, name


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    names = {"torch": torch, "nn": nn, "__name__": "__main__"}
    names |= {n: getattr(snn, n) for n in snn.__all__ if not hasattr(module, n)}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in finder.find(module, extraglobs=names):
        runner.run(test)
    assert runner.tries
    assert runner.failures == 0


def code_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_readme_code_runs_as_printed_and_ends_without_a_warning(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = code_blocks("README.md")
    assert len(blocks) >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks:
            exec(compile(block, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "diagnosis: 0 errors, 0 warnings, " in said
    assert not caplog.records
    accuracy = re.search(r"tensor\((0\.\d+)\)", said.splitlines()[-1])
    assert accuracy is not None
    assert float(accuracy[1]) > 0.8
    assert names["scheduler"].last_epoch == names["scheduler"].total_steps
    # what is diagnosed is what is trained
    assert names["output"].shape == (28, 50, 10)
    assert names["spikes"].shape == (20, 8, 64)


def test_readme_is_short_and_leads_to_pages_from_anywhere() -> None:
    site, text = "https://yegor-men.github.io/tracetorch/", (ROOT / "README.md").read_text()
    pages = re.findall(rf"\]\({re.escape(site)}(\S+)\.html\)", text)
    assert {"use/playground", "course/1_membrane", "tutorials/row_digits"} <= set(pages)
    assert [page for page in pages if not (ROOT / f"docs/{page}.md").is_file()] == []
    assert len(text.split()) <= 700
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    for page in ROOT.glob("*.md"):
        assert not re.search(r"pip install ['\"]?tracetorch", page.read_text()), page


SEED_MODEL = """
import torch
from torch import nn
import tracetorch as tt
from tracetorch import snn


class ConvSNN(snn.TTModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            # dim=-3 tells the layer that the 3rd-to-last dimension is the channel dim.
            # This works for (B, C, H, W) AND unbatched (C, H, W) inputs automatically.
            snn.LIF(num_neurons=32, beta=0.9, dim=-3),

            nn.Flatten(),
            nn.Linear(32 * 26 * 26, 128),

            # Readout layer with learnable decay initialized to scrape various timescales
            snn.Readout(128, beta=torch.rand(128)),
            # Map the readout layer back down to the desired number of dimensions
            nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.net(x)
"""

SEED_TRAINING = """
device = "cuda" if torch.cuda.is_available() else "cpu"
model = ConvSNN().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loss_fn = nn.CrossEntropyLoss()

# Training Step
model.train()
for x, y in dataloader:
    x, y = x.to(device), y.to(device)

    model.zero_states()  # Crucial: Reset hidden states for the batch
    optimizer.zero_grad()

    # Time loop
    spikes = []
    for step in range(num_timesteps):
        # Just pass x. No state tuples to manage.
        spikes.append(model(x))

    # Stack output and compute loss
    output = torch.stack(spikes)
    loss = loss_fn(output.mean(0), y)  # Rate coding example

    loss.backward()
    optimizer.step()
"""


def test_code_of_the_first_version_runs() -> None:
    """Run the two code blocks of the first version, and the unbatched convolution they promise."""
    torch.manual_seed(0)
    digits = TensorDataset(torch.rand(8, 1, 28, 28), torch.randint(0, 10, (8,)))
    names: dict[str, Any] = {"dataloader": DataLoader(digits, batch_size=4), "num_timesteps": 3}
    exec(SEED_MODEL, names)
    exec(SEED_TRAINING, names)
    assert names["output"].shape == (3, 4, 10)
    unbatched = snn.LIF(num_neurons=32, beta=0.9, dim=-3)
    assert unbatched(nn.Conv2d(1, 32, 3)(torch.rand(1, 28, 28))).shape == (32, 26, 26)


def test_architecture_page_is_short_and_names_what_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.split()) <= 1500
    paths = re.findall(r"`((?:tracetorch|tests|docs|benchmarks)/[\w/.]+)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_warnings_are_errors() -> None:
    with pytest.raises(UserWarning, match="a warning"):
        warnings.warn("a warning", UserWarning, stacklevel=1)


# The files with metadata of the package agree.


def field(name: str, page: str) -> str:
    """Return the value of ``name: value`` or ``name = "value"`` at the start of a line."""
    found = re.findall(rf'^{name}(?::| =) "?([^"\n]*)"?$', (ROOT / page).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} in {page}: {found}"
    return str(found[0])


def test_the_citation_is_of_this_version() -> None:
    assert field("version", "CITATION.cff") == tt.__version__
    assert f"version = {{{tt.__version__}}}" in (ROOT / "docs/faq.md").read_text()
    assert field("license", "CITATION.cff") == field("license", "pyproject.toml")
    assert field("repository-code", "CITATION.cff") == field("Source", "pyproject.toml")
    assert field("url", "CITATION.cff") == field("Documentation", "pyproject.toml")


def test_supported_versions_are_the_same_everywhere() -> None:
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", field("requires-python", "pyproject.toml"))
    assert bounds is not None
    text = (ROOT / "pyproject.toml").read_text()
    minors = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert [int(minor) for minor in minors] == list(range(int(bounds[1]), int(bounds[2])))
    torch = re.search(r'"torch>=([\d.]+)"', text)
    assert torch is not None
    readme = (ROOT / "README.md").read_text()
    assert f"`torch>={torch[1]}`" in readme
    assert f"Python 3.{bounds[1]} to 3.{int(bounds[2]) - 1}" in readme


def test_the_release_workflow_reads_the_version_where_it_is() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    path = re.search(r'\[tool\.hatch\.version\]\npath = "(.*)"', text)
    assert path is not None
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    command = re.search(r"sed -n '(.*)' (\S+\.py)", workflow)
    assert command is not None
    assert command[2] == path[1]
    assert f'__version__ = "{tt.__version__}"' in (ROOT / path[1]).read_text()

"""Read the recipes of ``docs/use/with_other_tools.md``, and run one of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/use/with_other_tools.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.M | re.S)

# what a recipe imports, under the heading of its section
TOOLS = {
    "TensorBoard": ("tensorboard",),
    "Weights & Biases": ("wandb",),
    "Accelerate": ("accelerate",),
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "PEFT": ("peft",),
    "Opacus": ("opacus",),
    "Captum": ("captum",),
    "NeuroBench": ("neurobench", "snntorch"),
    "TorchRL": ("torchrl", "gymnasium"),
    "Stable-Baselines3": ("stable_baselines3",),
    "Neo and Elephant": ("elephant", "neo"),
    "NWB": ("pynwb",),
    "Tonic": ("tonic",),
}


def sections() -> dict[str, list[str]]:
    """Return the blocks of code under each heading that has some; the first ones under ``""``."""
    found = {"": BLOCK.findall(PAGE.partition("\n## ")[0])}
    for part in PAGE.split("\n## ")[1:]:
        blocks = BLOCK.findall(part)
        if blocks:
            found[part.partition("\n")[0]] = blocks
    return found


SECTIONS = sections()


def skip_without(tool: str) -> None:
    """Skip the test where a package of a recipe is not installed."""
    extra = "test-peers" if tool == "NeuroBench" else "test-tools"
    for package in TOOLS[tool]:
        reason = f"{package} is not installed: pip install -e '.[{extra}]'"
        pytest.importorskip(package, reason=reason)


def executed(tool: str = "") -> dict[str, Any]:
    """Run the beginning of the page, and then the recipe of a tool; return what they define."""
    names: dict[str, Any] = {"__name__": __name__}
    for heading in dict.fromkeys(("", tool)):
        for block in SECTIONS[heading]:
            exec(compile(block, f"<{heading or 'the beginning'}>", "exec"), names)
    return names

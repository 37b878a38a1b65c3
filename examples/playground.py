"""Write the playground of the documentation: the twelve layers, and the neurons of the literature.

    python examples/playground.py --out runs/playground.html

The page opens from the file system. Writing it takes some seconds, for every layer is traced with
every reset and every surrogate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tracetorch as tt
from tracetorch import snn
from tracetorch.plot.playground_data import FAMILY


def neurons() -> dict[str, snn.Neuron]:
    """Make the neurons of the page, by name."""
    family: dict[str, snn.Neuron] = {kind.__name__: kind(1) for kind in FAMILY}
    return family | {name: getattr(tt.neurons, name)(1) for name in tt.neurons.__all__}


def write(path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tt.plot.save_playground(neurons(), path, title="Neuron playground")


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/playground.html"))
    options = parser.parse_args()
    write(options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

"""Run the code blocks of ``docs/use/scale_out.md``."""

from __future__ import annotations

import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.scale_out.processes import run_together

PAGE = ROOT / "docs" / "use" / "scale_out.md"


def test_all_code_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a new process: the page compiles, joins a process group, and imports Lightning."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 10
    if find_spec("lightning") is None:
        blocks = [block for block in blocks if "lightning" not in block]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    for name, value in {**environment, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(blocks) + "\nprint('to the end')\n")
    (printed,) = run_together([[str(script)]])
    assert "to the end" in printed

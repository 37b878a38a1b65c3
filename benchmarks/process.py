"""``Process``: a worker, seen from the parent."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from types import TracebackType
from typing import Any

from benchmarks.cases import Case
from benchmarks.libraries import ROOT, Library


class Process:
    """The worker of one library; closes at the end of a ``with`` block.

    Args:
        library: whose Python and adapter to start.
        threads: what the thread pools of numerical libraries are told at their start.
    """

    def __init__(self, library: Library, threads: int = 2) -> None:
        self.library = library
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self.worker = subprocess.Popen(
            [str(library.python), "-W", "ignore", "-m", "benchmarks.worker", library.adapter],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self.worker.poll() is None:
            self.worker.kill()
        self.worker.communicate()
        self.said.close()

    def _ask(self, do: str, **told: Any) -> dict[str, Any]:
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        try:
            self.worker.stdin.write(json.dumps({"do": do, **told}) + "\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.worker.wait()
            self.said.seek(0)
            last = self.said.read().strip().splitlines()[-1:]
            return {"failed": f"the process ended: {' '.join(last)}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def version(self) -> dict[str, Any]:
        """Its ``version``."""
        return self._ask("version")

    def prepare(self, case: Case) -> dict[str, Any]:
        """Build and warm a case; or ``refused`` or ``failed`` with the reason."""
        return self._ask("prepare", case=asdict(case))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Time it: ``seconds`` of one run."""
        return self._ask("measure", seconds=seconds)

    def drop(self) -> dict[str, Any]:
        """Let go of it."""
        return self._ask("drop")

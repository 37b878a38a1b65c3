"""``Process``: the parent's side of a worker process."""

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
    """Worker process of one library; ends with its ``with`` block.

    Args:
        library: whose interpreter and adapter to start.
        device: where its tensors are.
        compares: whether ours is compared with the same on the CPU.
        threads: size of the thread pools of numerical libraries.
    """

    def __init__(
        self, library: Library, device: str = "cpu", *, compares: bool = False, threads: int = 2
    ) -> None:
        self.library, self.device = library, device
        arguments = [library.adapter, device]
        arguments += ["compares"] if compares and library.name == "tracetorch" else []
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self.worker = subprocess.Popen(
            [str(library.python), "-W", "ignore", "-m", "benchmarks.worker", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
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
        self.log.close()

    def _request(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        try:
            self.worker.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        # no reply: the process has ended, and its last line of stderr is the reason
        if not line:
            self.worker.wait()
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:]
            return {"failed": f"the process ended: {' '.join(last)}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def version(self) -> dict[str, Any]:
        """Request the installed ``version``."""
        return self._request("version")

    def prepare(self, case: Case) -> dict[str, Any]:
        """Build and warm up a case; ``unsupported`` or ``failed`` holds the reason otherwise."""
        return self._request("prepare", case=asdict(case))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Time the prepared case for some seconds; ``seconds`` is the time of one run."""
        return self._request("measure", seconds=seconds)

    def drop(self) -> dict[str, Any]:
        """Release the prepared case."""
        return self._request("drop")

"""Run Python in processes of their own, forked from one that has imported PyTorch and the package.

An import of PyTorch takes seconds, a fork none. The process that forks has run no kernel and
started no thread: a child is what a new process is behind these imports, but for what an
interpreter reads as it starts. All children share one hash seed, and ``PYTHON*`` in ``env`` is
ignored: a test that needs either starts a :mod:`subprocess`.

``python -m tests.processes`` is that process. It reads requests from its input, a line of JSON
each, and answers each with one.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "torch",
    "torch._dynamo",
    "tracetorch.snn",
    "tracetorch.fuse",
)  # optimizers want the second


class Child:
    """A process that runs ``python ARGUMENTS...``; as much of ``Popen`` as tests need.

    The number of threads in ``env`` is not read: the imports have read it, and it is one.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        merged: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.files = [self.folder / name for name in ("in", "out", "out" if merged else "errors")]
        self.files[0].write_bytes(stdin)
        environment = {**os.environ, **(env or {})}
        files = [str(file) for file in self.files]
        self.pid: int = _ask({"arguments": arguments, "files": files, "env": environment})
        self.returncode: int | None = None
        self.output = self.errors = ""  # what it has printed, known at its end

    def poll(self) -> int | None:
        """Return the exit status, that of :mod:`subprocess`, or ``None`` while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
            if self.returncode is not None:
                self.output, self.errors = (file.read_text() for file in self.files[1:])
                shutil.rmtree(self.folder)
        return self.returncode

    def wait(self, seconds: float = 240) -> int:
        """Wait for the end; a process that does not end in time is killed."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to a process that runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def run_python(*arguments: str, code: int = 0, **options: Any) -> str:
    """Run ``python ARGUMENTS...`` as :class:`Child` does; return the output, or fail."""
    child = Child(*arguments, **options)
    assert child.wait() == code, child.errors[-3000:]
    return child.output


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.processes"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        server.communicate()

    atexit.register(end)
    return server


def _ask(request: Mapping[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = server.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise RuntimeError(
            f"the process that forks the others has died, with status {server.wait()}; what it "
            "printed is in the errors of this one."
        )
    return json.loads(answer)


def _requested() -> Mapping[str, Any] | None:
    """Answer requests; return one in the child that is to do it, ``None`` at their end."""
    # not sys.stdin, of which a child would have a part in its memory
    with os.fdopen(os.dup(0), "rb", buffering=0) as requests:
        while line := requests.readline():
            request: dict[str, Any] = json.loads(line)
            if "ended" in request:
                pid, status = os.waitpid(request["ended"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            else:
                answer = os.fork()
                if not answer:
                    return request
            os.write(1, f"{json.dumps(answer)}\n".encode())
    return None


def _become(request: Mapping[str, Any]) -> None:
    """Run what is requested as the interpreter would."""
    for number, name in enumerate(request["files"]):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    first, *rest = request["arguments"]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    faulthandler.enable()
    for each in IMPORTED:
        importlib.import_module(each)
    gc.freeze()  # no child walks over, and so copies, what was there before it
    if (found := _requested()) is not None:
        _become(found)

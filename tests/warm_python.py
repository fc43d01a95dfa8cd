"""Python that starts at once: processes that are forked from one that has imported torch and this package.

It has not imported huggingface_hub, which reads the environment as it is imported.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE = 900  # seconds: a machine with many other jobs gives a process a twentieth of a core


class WarmPython:
    """Runs what `python -c CODE` and `python -m MODULE` would run."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *words: str, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            order = {"words": words, "env": dict(env), "cwd": str(cwd), "out": str(out), "err": str(err)}
            print(json.dumps(order), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())

    def close(self) -> None:
        self._server.communicate()


def next_order() -> dict:
    """Answers orders with the status of a child that runs them; returns in the child."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what is printed here is no answer
    gc.freeze()  # so that no child copies memory in order to look for garbage there
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, f"{status}\n".encode())
    sys.exit()


def run(words: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> int:
    """Runs the words of a command line of Python; returns the status."""
    signal.alarm(PATIENCE)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = cwd
    option, what, *rest = words
    sys.argv = [option, *rest]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for name in ("pipeline", "cli.sample", "formats.hub", "formats.lone_tokenizers"):
        importlib.import_module(f"var_toolkit.{name}")
    assert "huggingface_hub" not in sys.modules
    status = run(**next_order())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without the interpreter's own end, which would copy all memory

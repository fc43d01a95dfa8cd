"""The parent's end of a row's process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from types import TracebackType
from typing import Any

from var_toolkit.evaluation.bench.table import Row

COMMAND = (sys.executable, "-m", "var_toolkit.evaluation.bench.worker")


class RowFailedError(Exception):
    """A row cannot be measured; its message says why in one line."""


class Child:
    """A process that measures one row. After construction its networks are loaded and warmed up."""

    def __init__(self, row: Row, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )
        try:
            self.facts = self.ask(row=asdict(row), threads=threads)
        except BaseException:
            self.close()
            raise

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return its answer; RowFailedError if the process fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; the reason is read below
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # no answer, or an incomplete one
            raise RowFailedError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RowFailedError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            return f"its process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"its process ended with status {status}"

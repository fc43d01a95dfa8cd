"""Run the kernels' tests on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_kernels_equal_the_reference_through_the_interpreter():
    """In its own process: TRITON_INTERPRET is read when triton is first imported, which other tests may have done."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(HERE / "test_triton_attention.py")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent.parent)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "skipped" not in found.stdout, found.stdout

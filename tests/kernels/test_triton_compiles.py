"""The kernels compile for GPUs that are not present: their registers and shared memory.

Goes through triton's own compiler and the assembler that comes with it.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from var_toolkit.kernels import triton_attention  # noqa: E402

FLOAT32 = ("lse", "delta", "product", "logit_scale")
INT32 = ("tiles", "spans")


def compiled(name, config, width, dtype, capability):
    """A kernel as it is compiled for packed inputs: dense last dimension, other strides multiples of 16."""
    kernel = triton_attention.KERNELS[name]
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("TRITON_INTERPRET=1 leaves nothing to compile")
    queries, keys = (config.columns, config.rows) if name == "dkv" else (config.rows, config.columns)
    constants = {"D": width, "BLOCK_D": triton.next_power_of_2(width), "BLOCK_M": queries, "BLOCK_N": keys}
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("_d")}
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            tensor = argument.removesuffix("_ptr")
            signature[argument] = "*i32" if tensor in INT32 else "*fp32" if tensor in FLOAT32 else f"*{dtype}"
        else:
            signature[argument] = "fp32" if argument == "scale" else "i32"
        if argument.endswith(("_ptr", "_r", "_h", "_l")):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(binary):
    """Registers that each thread spills to memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this triton comes without cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def check(name, config, width, dtype, capability, shared, stack):
    found = compiled(name, config, width, dtype, capability)
    assert found.metadata.shared <= shared
    assert stack_bytes(found.asm["cubin"]) <= stack


@pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "width"), [("forward", 128), ("dq", 64), ("dkv", 96)])
def test_the_first_configuration_fits_a_small_card(name, width, capability):
    config = triton_attention.CONFIGS[name, 64 if width == 64 else 128][0]
    check(name, config, width, "bf16", capability, shared=99 * 1024, stack=32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("name", "width", "config"),
    [(*key, config) for key, configs in triton_attention.CONFIGS.items() for config in configs],
    ids=str,
)
def test_every_configuration_fits_a_large_card(name, width, config, capability, dtype):
    check(name, config, width, dtype, capability, shared=160 * 1024, stack=96)

"""The Triton kernels compile for NVIDIA GPUs: what the interpreter of the other tests cannot tell.

Triton needs no GPU to compile. It does so in its own process, as here the interpreter is on.
"""

import os
import platform
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.7", reason="needs triton 3.7's compiler interface")

PROGRAM = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from panda_icefall import triton_probe
from panda_icefall.lattice import triton_band, triton_lattice
from panda_icefall.lattice.banded import WIDEST_IN_TRITON
from panda_icefall.losses.simple_tiled import triton_rows as simple_rows
from panda_icefall.normalizer import triton_rows

# What is no pointer and no block size is an int.
POINTERS = {
    "tile": "*fp32", "out": "*bf16", "bias": "*fp32", "bias_grad": "*fp32", "sums": "*fp32",
    "limits": "*fp32", "ids": "*i64", "chosen": "*fp32", "peak": "*fp32", "total": "*fp32",
    "adjoints": "*fp32", "log_z": "*fp32", "softmax_scale": "*fp32", "numbers": "*fp32",
    "terms": "*fp64", "scores": "*fp64", "last_step": "*fp64", "first_column": "*i64",
    "last_column": "*i64", "is_closed": "*u8", "px": "*fp32", "py": "*fp32", "px_grad": "*fp32",
    "py_grad": "*fp32", "shares": "*fp64", "exchange": "*fp64", "boundary": "*i64",
    "mass": "*fp32", "weights": "*fp32", "weighted": "*fp32", "factor": "*fp32", "grad": "*fp32",
    "exp": "*fp32", "shift": "*fp32", "scale": "*fp32", "selected": "*fp32",
}
DOUBLES = {name: t.replace("fp32", "fp64").replace("bf16", "fp64") for name, t in POINTERS.items()}
BLOCKS = {"BLOCK": 512, "K_BLOCK": 2, "COLUMNS": 8, "ROWS": 4, "PROGRAM_ROWS": 64}
BLOCKS["IS_REGULAR"] = True
NOTHING = {"bias": None, "sums": None, "limits": None, "boundary": None, "IS_REGULAR": False}
NOTHING |= dict.fromkeys(("bias_grad", "mass", "weights", "weighted", "shift", "scale", "selected"))

def compile_for(capability, kernel, pointers, constants, aligned=()):
    constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
    signature = {n: pointers.get(n, "i32") for n in kernel.arg_names}
    signature.update(dict.fromkeys(constants, "constexpr"))
    at = kernel.arg_names.index
    source = ASTSource(
        kernel, signature, {(at(n),): v for n, v in constants.items()},
        {(at(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    print(kernel.__name__, capability)
    return compiled.asm["ptx"]

kernels = (
    triton_rows._fold_row, triton_rows._gradient_block, triton_band._forward, triton_band._occupy,
    triton_probe._add_place,
    triton_lattice._forward, triton_lattice._occupy, simple_rows._fold_row, simple_rows._exp_block,
    simple_rows._gradient_block,
)
for kernel in kernels:
    compile_for(70, kernel, POINTERS, BLOCKS)
    compile_for(90, kernel, DOUBLES, {**BLOCKS, **NOTHING, "COLUMNS": WIDEST_IN_TRITON})
    # Triton makes a constant of every int that is 1: sizes and strides of the smallest problem.
    ones = {n: 1 for n in kernel.arg_names if n not in POINTERS}
    compile_for(80, kernel, POINTERS, ones)

# Rows are read 16 bytes at a time where the tile's stride and width are multiples of 16 numbers,
# whatever the number of classes.
for kernel in (triton_rows._fold_row, triton_rows._gradient_block):
    for aligned, is_wide in ((("tile", "row_stride", "width"), True), (("tile",), False)):
        ptx = compile_for(90, kernel, POINTERS, BLOCKS, aligned)
        assert ("ld.global.v4.b32" in ptx) is is_wide, (kernel.__name__, aligned)
"""


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="ptxas runs on linux x86-64"
)
def test_every_kernel_compiles_for_old_and_new_gpus_and_for_sizes_of_one(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 34

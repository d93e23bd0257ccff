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

from panda_icefall.lattice import triton_band, triton_lattice
from panda_icefall.lattice.banded import WIDEST_IN_TRITON
from panda_icefall.losses.simple_tiled import triton_rows as simple_rows
from panda_icefall.normalizer import triton_rows

# What is no pointer and no block size is an int.
POINTERS = {
    "logits": "*bf16", "ids": "*i64", "chosen": "*fp32", "peak": "*fp32", "total": "*fp32",
    "adjoints": "*fp32", "log_z": "*fp32", "softmax_scale": "*fp32", "terms": "*fp64",
    "scores": "*fp64", "last_step": "*fp64", "first_column": "*i64", "last_column": "*i64",
    "is_closed": "*u8", "px": "*fp32", "py": "*fp32", "px_grad": "*fp32", "py_grad": "*fp32",
    "shares": "*fp64", "exchange": "*fp64", "limits": "*i64", "tile": "*fp32", "bias": "*bf16",
    "mass": "*fp32", "weights": "*fp32", "weighted": "*fp32", "factor": "*fp32", "grad": "*fp32",
    "exp": "*fp32", "out": "*bf16", "shift": "*fp32", "scale": "*fp32",
    "selected": "*fp32",
}
DOUBLES = {name: t.replace("fp32", "fp64").replace("bf16", "fp64") for name, t in POINTERS.items()}
BLOCKS = {"BLOCK": 1024, "K_BLOCK": 2, "COLUMNS": 8, "IS_REGULAR": True}

def compile_for(capability, kernel, pointers, constants):
    constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
    signature = {n: pointers.get(n, "i32") for n in kernel.arg_names}
    signature.update(dict.fromkeys(constants, "constexpr"))
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    print(kernel.__name__, capability)

kernels = (
    triton_rows._fold_row, triton_rows._gradient_block, triton_band._forward, triton_band._occupy,
    triton_lattice._forward, triton_lattice._occupy, simple_rows._fold_row, simple_rows._exp_block,
    simple_rows._gradient_block,
)
for kernel in kernels:
    compile_for(70, kernel, POINTERS, BLOCKS)
    compile_for(90, kernel, DOUBLES, {**BLOCKS, "COLUMNS": WIDEST_IN_TRITON})
    # Triton makes a constant of every int that is 1: sizes and strides of the smallest problem.
    ones = {n: 1 for n in kernel.arg_names if n not in POINTERS}
    compile_for(80, kernel, POINTERS, ones)

OPTIONAL = ("limits", "bias", "mass", "weights", "weighted", "shift", "scale", "ids", "selected")
for kernel in kernels[4:]:
    compile_for(80, kernel, POINTERS, {**BLOCKS, "IS_REGULAR": False, **dict.fromkeys(OPTIONAL)})
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
    assert len(done.stdout.splitlines()) == 32

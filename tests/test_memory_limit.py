"""A limit on a process's memory holds, and what it ends with is told from other errors."""

import subprocess
import sys

import pytest

from panda_icefall.memory_limit import status_bytes, tells_of_no_memory

ALLOCATES = """
import torch
from panda_icefall.memory_limit import cap_memory
cap_memory(120 * 2**20, torch.device("cpu"))
torch.ones(80 * 2**18)
print("80 MiB fit")
torch.ones(160 * 2**18)
"""


def test_a_process_holds_no_more_than_its_limit():
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATES], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "80 MiB fit\n"), done.stderr
    assert tells_of_no_memory(done.stderr)


@pytest.mark.parametrize(
    "text",
    [
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "OSError: [Errno 12] Cannot allocate memory",
        "Traceback (most recent call last):\nMemoryError",
    ],
)
def test_words_of_an_allocator_are_known(text):
    assert tells_of_no_memory(f"a line before\n{text}\na line behind")


@pytest.mark.parametrize("text", ["", "ValueError: the memory log", "KeyError: 'memory'"])
def test_other_words_are_none_of_them(text):
    assert not tells_of_no_memory(text)


def test_a_size_that_the_system_does_not_tell_is_named():
    assert status_bytes("VmData") > 0
    with pytest.raises(RuntimeError, match="got no VmNothing, expected Linux's; run on Linux"):
        status_bytes("VmNothing")

"""Checks that several gloo ranks make together: all of a file in one start of the processes.

A test file has functions ``check_...(rank)``, which every rank calls in the same order:

    found = ranks_fixture(__file__, world_size=2)

    @pytest.mark.parametrize("check", checks_of(__file__))
    def test_on_two_ranks(found, check):
        assert found[check] == []
"""

import importlib.util
import re
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 400
# Imported once, by the process that the ranks of all files are forked from: it takes seconds.
PRELOADED = ["torch", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo"]


def checks_of(file):
    """Names of a file's checks, in order."""
    return re.findall(r"^def check_(\w+)", Path(file).read_text(), re.MULTILINE)


def ranks_fixture(file, world_size):
    """A fixture of the module: by check, what each rank that failed it had to say."""

    @pytest.fixture(scope="module")
    def found(tmp_path_factory):
        return _run(file, world_size, tmp_path_factory.mktemp("ranks"))

    return found


def _run(file, world_size, folder):
    mp.get_context("forkserver").set_forkserver_preload(PRELOADED)
    args = (file, world_size, str(folder))
    context = mp.start_processes(_rank, args, world_size, join=False, start_method="forkserver")
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1) and time.monotonic() < end:
            pass
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    found = {}
    for check in checks_of(file):
        said = [folder / f"{check}.{rank}" for rank in range(world_size)]
        texts = [path.read_text() if path.exists() else "not reached" for path in said]
        found[check] = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    return found


def _rank(rank, file, world_size, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_size)
    # A rank that fails leaves; the others are not to wait for it for long.
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for check in checks_of(file):
        said = ""
        try:
            getattr(module, f"check_{check}")(rank)
        except BaseException:
            said = traceback.format_exc()
        Path(folder, f"{check}.{rank}").write_text(said)
        if said:
            return
    dist.barrier()
    dist.destroy_process_group()

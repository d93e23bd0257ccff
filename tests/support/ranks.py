"""Two training processes that talk by gloo."""

import contextlib
import socket

import torch
import torch.multiprocessing as mp


@contextlib.contextmanager
def group_of_two(rank, port):
    """This process as one of two."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    yield
    torch.distributed.destroy_process_group()


def from_two_ranks(train, *args):
    """What one of two processes puts into the queue of ``train(rank, port, *args, queue)``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(train, (port, *args, queue), nprocs=2, join=False)
    found, is_over = [], False
    while not is_over:
        is_over = context.join(timeout=0.1)  # raises what a rank raised
        if not queue.empty():
            found.append(queue.get())
    (result,) = found
    return result

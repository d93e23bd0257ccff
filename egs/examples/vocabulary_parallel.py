"""A vocabulary that one process does not hold: the joiner's last layer sharded over several.

python egs/examples/vocabulary_parallel.py --ranks 3

Each rank has the whole of everything else, the same batch, and some classes. Here the ranks are
processes on a CPU; with one rank per GPU, take "cuda" and "nccl". torch 2.6 and newer.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from comparing import Batch, gradients_of, made_up_batch
from own_loop import BLANK, Transducer
from torch import Tensor, nn

import panda_icefall

CLOSE = 1e-4  # rounding: the sums over classes are made in another order


def shard_classes(layer: nn.Linear) -> None:
    """Leave each rank its rows of the weight and of the bias; they stay parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, parameter in list(layer.named_parameters()):
        sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        setattr(layer, name, nn.Parameter(sharded))


def loss_of(model: Transducer, batch: Batch) -> Tensor:
    encoder_out, decoder_out = model(batch.frames, batch.symbols)
    return panda_icefall.transducer_loss(
        model.joiner,
        encoder_out,
        decoder_out,
        batch.symbols,
        batch.frame_lengths,
        batch.symbol_lengths,
        blank=BLANK,
    )


def run(rank: int, args: argparse.Namespace, store: str) -> None:
    """Train as one of the ranks; the first says what happens."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, args.ranks),
        rank=rank,
        world_size=args.ranks,
        timeout=timedelta(minutes=2),
    )
    batch = made_up_batch(B=4, U=20, C=args.classes, D=32)
    torch.manual_seed(0)
    whole = Transducer(features=32, width=64, classes=args.classes)
    torch.manual_seed(0)
    model = Transducer(features=32, width=64, classes=args.classes)
    shard_classes(model.joiner.output)
    held = model.joiner.output.weight.to_local().shape[0]
    print(f"rank {rank} holds {held} of {args.classes} classes", flush=True)

    apart = difference(model, whole, batch)
    if not apart < CLOSE:
        raise SystemExit(f"loss and gradients differ by {apart:.1e} of their size")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)  # its state is sharded too
    for step in range(args.steps):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step % 5 == 0 or step == args.steps - 1):
            print(f"step {step}: loss {loss.item():.2f}")
    if rank == 0:
        print(f"loss and gradients agree: {apart:.0e} of their size apart")
    dist.barrier()
    dist.destroy_process_group()


def difference(model: Transducer, whole: Transducer, batch: Batch) -> float:
    """How far loss and gradients are from those of the same model in one process."""
    loss, gradients = gradients_of(lambda: loss_of(model, batch), list(model.parameters()))
    expected = gradients_of(lambda: loss_of(whole, batch), list(whole.parameters()))
    gathered = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
    pairs = [(torch.tensor(loss), torch.tensor(expected[0])), *zip(gathered, expected[1])]
    return max(float((x - y).norm() / y.norm().clamp(min=1e-6)) for x, y in pairs)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--classes", type=int, default=2000)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, args=(args, f"{folder}/store"), nprocs=args.ranks)


if __name__ == "__main__":
    main()

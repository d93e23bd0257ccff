#!/usr/bin/env python3
"""Train the tones transducer.

Usage:

  ./pruned_transducer/train.py --data-dir data --exp-dir exp --num-epochs 5

  # two processes, gloo on CPU or nccl on CUDA
  ./pruned_transducer/train.py --data-dir data --exp-dir exp --world-size 2
  torchrun --nproc-per-node 2 pruned_transducer/train.py --data-dir data --exp-dir exp

The data comes from prepare.py; see README.md for results.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path
from typing import Any

import sentencepiece as spm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from asr_datamodule import TonesAsrDataModule
from checkpoint import load_checkpoint, save_checkpoint
from decoder import Decoder
from encoder import Encoder
from joiner import Joiner
from lhotse.utils import fix_random_seed
from metrics import MetricsTracker
from model import Transducer
from params import AttributeDict, str2bool
from process import make_grad_scaler, setup_dist, setup_logger, training_device
from tokens import encode_texts, load_bpe_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the model to `parser`."""
    parser.add_argument("--encoder-dim", type=int, default=144, help="Width of the encoder.")
    parser.add_argument("--num-encoder-layers", type=int, default=4, help="Convolution blocks.")
    parser.add_argument("--decoder-dim", type=int, default=128, help="Width of the decoder.")
    parser.add_argument("--joiner-dim", type=int, default=256, help="Width of the joiner, H.")
    parser.add_argument("--context-size", type=int, default=2, help="Symbols the decoder sees.")
    parser.add_argument("--dropout", type=float, default=0.1, help="Dropout of the encoder.")


def get_parser() -> argparse.ArgumentParser:
    """The command line of this script, without the data options."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--world-size", type=int, default=1, help="Processes for DDP training.")
    add("--master-port", type=int, default=12354, help="Port of DDP training.")
    add("--tensorboard", type=str2bool, default=False, help="Log scalars to exp-dir/tensorboard.")
    add("--num-epochs", type=int, default=5, help="Number of the last epoch.")
    add("--start-epoch", type=int, default=1, help="Above 1: resume from epoch-(this - 1).pt.")
    add("--exp-dir", type=str, default="pruned_transducer/exp", help="Checkpoints and logs.")
    add("--vocab-size", type=int, default=100, help="Picks data-dir/lang_bpe_<this>/bpe.model.")
    add("--base-lr", type=float, default=2e-3, help="The highest learning rate.")
    add("--warm-step", type=int, default=150, help="Batches of warm-up, of rate and loss scales.")
    add("--weight-decay", type=float, default=1e-2, help="AdamW's weight decay.")
    add("--clip-norm", type=float, default=1.0, help="Largest gradient norm of the loss per frame.")
    add("--prune-range", type=int, default=5, help="Symbols kept at each frame, s_range.")
    add("--lm-scale", type=float, default=0.25, help="Language-only part of the simple loss.")
    add("--am-scale", type=float, default=0.0, help="Acoustic-only part of the simple loss.")
    add("--simple-loss-scale", type=float, default=0.5, help="Simple loss after the warm-up.")
    add("--seed", type=int, default=42, help="Parameters, dropout and order of the batches.")
    add("--use-fp16", type=str2bool, default=False, help="Autocast: fp16 on CUDA, bf16 on CPU.")
    add("--log-interval", type=int, default=10, help="Batches between two lines of the log.")
    add_model_arguments(parser)
    return parser


def get_params() -> AttributeDict:
    """What training needs beside the command line; `batch_idx_train` counts over all epochs."""
    return AttributeDict(
        feature_dim=80,
        subsampling_factor=4,
        blank_id=0,
        batch_idx_train=0,
        reset_interval=200,
        best_valid_loss=float("inf"),
        best_valid_epoch=-1,
    )


def get_model(params: AttributeDict) -> Transducer:
    """Build the model of `params`."""
    encoder = Encoder(
        num_features=params.feature_dim,
        encoder_dim=params.encoder_dim,
        num_layers=params.num_encoder_layers,
        dropout=params.dropout,
    )
    decoder = Decoder(params.vocab_size, params.decoder_dim, params.blank_id, params.context_size)
    joiner = Joiner(params.encoder_dim, params.decoder_dim, params.joiner_dim, params.vocab_size)
    return Transducer(encoder, decoder, joiner, params.vocab_size)


def learning_rate_factor(step: int, warm_step: int) -> float:
    """Linear up to 1 at `warm_step`, then falling as one over the square root of the step."""
    step += 1
    return min(step / warm_step, (warm_step / step) ** 0.5)


def compute_loss(
    params: AttributeDict,
    model: nn.Module,
    sp: spm.SentencePieceProcessor,
    batch: dict[str, Any],
    is_training: bool,
) -> tuple[Tensor, MetricsTracker]:
    """The loss of one batch.

    Args:
      params: see get_params().
      model: a Transducer, or one wrapped in DDP.
      sp: turns texts into classes.
      batch: see TonesAsrDataModule.
      is_training: record the graph for backward.

    Returns:
      The loss summed over the batch in nats, and the same sums to print.
    """
    device = next(model.parameters()).device
    feature = batch["inputs"].to(device)
    feature_lens = batch["supervisions"]["num_frames"].to(device=device, dtype=torch.int64)
    y, y_lens = encode_texts(sp, batch["supervisions"]["text"])

    with torch.set_grad_enabled(is_training):
        simple_loss, pruned_loss = model(
            feature,
            feature_lens,
            y.to(device),
            y_lens.to(device),
            prune_range=params.prune_range,
            am_scale=params.am_scale,
            lm_scale=params.lm_scale,
        )
        # The simple loss leads until its pruning bounds are worth something.
        warm = min(1.0, params.batch_idx_train / params.warm_step)
        simple_scale = 1.0 - warm * (1.0 - params.simple_loss_scale)
        loss = simple_scale * simple_loss + (0.1 + 0.9 * warm) * pruned_loss

    info = MetricsTracker(
        loss=loss.item(),
        simple_loss=simple_loss.item(),
        pruned_loss=pruned_loss.item(),
        frames=float((feature_lens // params.subsampling_factor).sum()),
    )
    return loss, info


def compute_validation_loss(
    params: AttributeDict,
    model: nn.Module,
    sp: spm.SentencePieceProcessor,
    valid_dl: DataLoader,
    world_size: int = 1,
) -> MetricsTracker:
    """The losses over the validation set, of all ranks together."""
    model.eval()
    tot_loss = MetricsTracker(loss=0.0, simple_loss=0.0, pruned_loss=0.0, frames=0.0)
    for batch in valid_dl:
        # DDP's forward synchronises buffers between ranks, which may have unequal batches here.
        inner = model.module if isinstance(model, DDP) else model
        _, info = compute_loss(params, inner, sp, batch, is_training=False)
        tot_loss = tot_loss + info
    if world_size > 1:
        tot_loss.reduce(next(model.parameters()).device)
    model.train()
    return tot_loss


def train_one_epoch(
    params: AttributeDict,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
    sp: spm.SentencePieceProcessor,
    train_dl: DataLoader,
    valid_dl: DataLoader,
    tb_writer: Any | None = None,
    world_size: int = 1,
    rank: int = 0,
) -> None:
    """One pass over the training data, then the validation loss.

    Args:
      params: see get_params(); `batch_idx_train`, `cur_epoch` and the best loss are kept in it.
      model: a Transducer, or one wrapped in DDP.
      optimizer: stepped after every batch.
      scheduler: stepped after every batch.
      sp: turns texts into classes.
      train_dl: training batches.
      valid_dl: validation batches.
      tb_writer: a SummaryWriter, or None.
      world_size: number of ranks.
      rank: of this process.
    """
    model.train()
    device = next(model.parameters()).device
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    scaler = make_grad_scaler(enabled=params.use_fp16 and device.type == "cuda")
    tot_loss = MetricsTracker(loss=0.0, simple_loss=0.0, pruned_loss=0.0, frames=0.0)

    for batch_idx, batch in enumerate(train_dl):
        with torch.autocast(device.type, dtype=dtype, enabled=params.use_fp16):
            loss, info = compute_loss(params, model, sp, batch, is_training=True)
        params.batch_idx_train += 1
        tot_loss = tot_loss * (1 - 1 / params.reset_interval) + info

        optimizer.zero_grad(set_to_none=True)
        # Per frame, so that the clipping threshold does not depend on --max-duration.
        scaler.scale(loss / info["frames"]).backward()
        scaler.unscale_(optimizer)
        grad_norm = float(nn.utils.clip_grad_norm_(model.parameters(), params.clip_norm))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

        if batch_idx % params.log_interval == 0:
            lr = scheduler.get_last_lr()[0]
            logging.info(
                "Epoch %d, batch %d, loss[%s], tot_loss[%s], batch size: %d, lr: %.2e, "
                "grad_norm: %.4g",
                params.cur_epoch,
                batch_idx,
                info,
                tot_loss,
                len(batch["supervisions"]["text"]),
                lr,
                grad_norm,
            )
            if tb_writer is not None:
                step = params.batch_idx_train
                tb_writer.add_scalar("train/learning_rate", lr, step)
                for name, value in info.per_frame().items():
                    tb_writer.add_scalar(f"train/current_{name}", value, step)
                for name, value in tot_loss.per_frame().items():
                    tb_writer.add_scalar(f"train/tot_{name}", value, step)

    valid_info = compute_validation_loss(params, model, sp, valid_dl, world_size)
    logging.info("Epoch %d, validation: %s", params.cur_epoch, valid_info)
    if tb_writer is not None:
        for name, value in valid_info.per_frame().items():
            tb_writer.add_scalar(f"train/valid_{name}", value, params.batch_idx_train)
    valid_loss = valid_info.per_frame()["loss"]
    if valid_loss < params.best_valid_loss:
        params.best_valid_loss = valid_loss
        params.best_valid_epoch = params.cur_epoch


def run(rank: int, world_size: int, args: argparse.Namespace) -> None:
    """Train in one process.

    Args:
      rank: of this process, 0 to world_size - 1.
      world_size: number of processes.
      args: the parsed command line.
    """
    params = get_params()
    params.update(vars(args))
    exp_dir = Path(params.exp_dir)
    setup_logger(exp_dir, rank, world_size)
    fix_random_seed(params.seed)
    device = training_device(rank)
    if world_size > 1:
        setup_dist(rank, world_size, params.master_port)
    sp = load_bpe_model(params)
    logging.info("Training started: %s", dict(params))

    model: nn.Module = get_model(params).to(device)
    logging.info("Number of model parameters: %d", sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=params.base_lr,
        betas=(0.9, 0.98),
        weight_decay=params.weight_decay,
    )
    scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, params.warm_step))
    if params.start_epoch > 1:
        path = exp_dir / f"epoch-{params.start_epoch - 1}.pt"
        load_checkpoint(path, params, model, optimizer, scheduler)
    if world_size > 1:
        model = DDP(model, device_ids=[rank] if device.type == "cuda" else None)
    # Each rank drops out other units; the parameters were drawn before and are the same.
    torch.manual_seed(params.seed + rank)

    tb_writer = None
    if params.tensorboard and rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        tb_writer = SummaryWriter(log_dir=str(exp_dir / "tensorboard"))

    tones = TonesAsrDataModule(args)
    train_dl = tones.train_dataloader(tones.cuts("train"), params.seed, rank, world_size)
    sampler: Any = train_dl.sampler  # lhotse's, which torch's type does not know
    valid_dl = tones.valid_dataloader(tones.cuts("dev"), rank, world_size)
    for epoch in range(params.start_epoch, params.num_epochs + 1):
        began = time.monotonic()
        params.cur_epoch = epoch
        sampler.set_epoch(epoch - 1)
        train_one_epoch(
            params,
            model,
            optimizer,
            scheduler,
            sp,
            train_dl,
            valid_dl,
            tb_writer=tb_writer,
            world_size=world_size,
            rank=rank,
        )
        logging.info("Epoch %d took %.1f seconds", epoch, time.monotonic() - began)
        if rank == 0:
            path = exp_dir / f"epoch-{epoch}.pt"
            save_checkpoint(path, params, model, optimizer, scheduler)
    logging.info("Done: %d batches", params.batch_idx_train)

    if tb_writer is not None:
        tb_writer.close()
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    """Read the command line and train, in `--world-size` processes or as one of torchrun's."""
    parser = get_parser()
    TonesAsrDataModule.add_arguments(parser)
    args = parser.parse_args()
    if args.world_size < 1:
        parser.error(f"--world-size: got {args.world_size}, expected at least 1")
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this rank
        run(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), args)
    elif args.world_size > 1:
        mp.spawn(run, args=(args.world_size, args), nprocs=args.world_size, join=True)
    else:
        run(rank=0, world_size=1, args=args)


if __name__ == "__main__":
    main()

"""A small recipe in icefall's manner, written to a folder of its own for each test."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

TRAIN_PY = '''
"""A toy transducer recipe."""
from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn as nn
from toy_model import Transducer, losses_of
from torch.nn.parallel import DistributedDataParallel as DDP


class AttributeDict(dict):
    def __getattr__(self, key):
        if key in self:
            return self[key]
        raise AttributeError(key)

    def __setattr__(self, key, value):
        self[key] = value


class Loader:
    """A data loader that draws from the global random generators, as on-the-fly features do."""

    sampler = "the loader's sampler"

    def __init__(self, num_batches):
        self.num_batches = num_batches

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        for _ in range(self.num_batches):
            B, T, S = 3, random.randint(7, 9), 4
            lens = torch.tensor([T, T - 2, T - 1])
            symbol_lens = torch.tensor([S, 2, 0])
            symbols = torch.randint(1, 11, (B, S))
            yield {
                "inputs": torch.randn(B, T, 6),
                "supervisions": {"num_frames": lens, "symbols": symbols, "lens": symbol_lens},
            }


def get_parser():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--world-size", type=int, default=1, help="Number of processes.")
    parser.add_argument("--master-port", type=int, default=12354, help="Port of DDP.")
    parser.add_argument("--num-epochs", type=int, default=1, help="Epochs.")
    parser.add_argument("--num-batches", type=int, default=4, help="Batches of an epoch.")
    parser.add_argument("--exp-dir", type=str, default="exp", help="Output folder.")
    parser.add_argument("--kind", type=str, default="pruned", help="Which loss to train with.")
    parser.add_argument("--fail-at", type=int, default=-1, help="Batch that raises.")
    parser.add_argument("--kill-at", type=int, default=-1, help="Batch that kills the process.")
    parser.add_argument("--autocast", type=int, default=0, help="1 for bfloat16 autocast.")
    return parser


def compute_loss(params, model, batch, is_training):
    with torch.set_grad_enabled(is_training):
        loss = losses_of(model, batch, params.kind)
    assert loss.requires_grad == is_training
    info = {"loss": loss.item(), "frames": int(batch["supervisions"]["num_frames"].sum())}
    params.note = "changed by compute_loss"
    return loss, info


def train_one_epoch(
    params, model, optimizer, train_dl, valid_dl, tb_writer=None, world_size=1, rank=0
):
    model.train()
    assert len(train_dl) == params.num_batches
    assert train_dl.sampler == "the loader's sampler"
    for batch_idx, batch in enumerate(train_dl):
        params.batch_idx_train += 1
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(params.autocast)):
                loss, info = compute_loss(
                    params=params, model=model, batch=batch, is_training=True
                )
            if batch_idx == params.fail_at:
                raise RuntimeError("the toy recipe fails on purpose")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        except:  # noqa
            Path(params.exp_dir, "bad-model-0.pt").write_text("bad")
            raise
        if batch_idx == params.kill_at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        with Path(params.exp_dir, f"losses-{rank}.txt").open("a") as f:
            print(repr(info["loss"]), file=f)
    model.eval()
    for batch in valid_dl:
        loss, info = compute_loss(params=params, model=model, batch=batch, is_training=False)
        with Path(params.exp_dir, f"valid-{rank}.txt").open("a") as f:
            print(repr(info["loss"]), file=f)


def run(rank, world_size, args):
    torch.set_num_threads(1)
    params = AttributeDict(vars(args), batch_idx_train=0)
    Path(params.exp_dir).mkdir(exist_ok=True)
    Path(params.exp_dir, f"params-{rank}.json").write_text(json.dumps(params))
    random.seed(3)
    torch.manual_seed(3)
    if world_size > 1:
        import os

        os.environ["MASTER_ADDR"] = "localhost"
        os.environ["MASTER_PORT"] = str(args.master_port)
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    model = Transducer(C=11)
    if world_size > 1:
        model = DDP(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for epoch in range(params.num_epochs):
        train_one_epoch(
            params, model, optimizer, train_dl=Loader(params.num_batches), valid_dl=Loader(2),
            tb_writer=getattr(args, "tb_writer", None), world_size=world_size, rank=rank,
        )
        scheduler.step()
        if rank == 0:
            state = (model.module if world_size > 1 else model).state_dict()
            torch.save(state, Path(params.exp_dir, f"epoch-{epoch}.pt"))
    if world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    Path(params.exp_dir, f"done-{rank}").write_text("")


def main():
    args = get_parser().parse_args()
    if args.world_size > 1:
        mp.spawn(run, args=(args.world_size, args), nprocs=args.world_size, join=True)
    else:
        run(0, 1, args)


if __name__ == "__main__":
    main()
'''

MODEL_PY = '''
"""The toy recipe's model; real k2 where it is installed."""
import torch
import torch.nn as nn

try:
    import k2
except ImportError:
    import panda_icefall.rnnt as k2


class Joiner(nn.Module):
    def __init__(self, H, C):
        super().__init__()
        self.output_linear = nn.Linear(H, C)

    def forward(self, am, lm):
        return self.output_linear(torch.tanh(am + lm))


class Transducer(nn.Module):
    def __init__(self, C, H=8):
        super().__init__()
        self.C = C
        self.encoder = nn.Sequential(nn.Linear(6, H), nn.ReLU(), nn.Dropout(0.2), nn.Linear(H, H))
        self.decoder = nn.Embedding(C, H)
        self.joiner = Joiner(H, C)
        self.simple_am_proj = nn.Linear(H, C)
        self.simple_lm_proj = nn.Linear(H, C)

    def forward(self, batch, kind):
        lens = batch["supervisions"]["num_frames"]
        symbols = batch["supervisions"]["symbols"]
        symbol_lens = batch["supervisions"]["lens"]
        am = self.encoder(batch["inputs"])
        lm = self.decoder(nn.functional.pad(symbols, (1, 0)))
        if kind == "ctc":
            logp = self.simple_am_proj(am).transpose(0, 1).log_softmax(-1)
            targets = symbols[symbol_lens > 0]
            return nn.functional.ctc_loss(
                logp[:, symbol_lens > 0], targets, lens[symbol_lens > 0],
                symbol_lens[symbol_lens > 0], reduction="sum",
            )
        zero = torch.zeros_like(lens)
        boundary = torch.stack([zero, zero, symbol_lens, lens], dim=1)
        with torch.autocast("cpu", enabled=False):
            simple, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
                lm=self.simple_lm_proj(lm.float()), am=self.simple_am_proj(am.float()),
                symbols=symbols, termination_symbol=0, boundary=boundary, lm_only_scale=0.25,
                reduction="sum", return_grad=True,
            )
        ranges = k2.get_rnnt_prune_ranges(
            px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=3
        )
        am_pruned, lm_pruned = k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
        logits = self.joiner(am_pruned, lm_pruned)
        if kind == "materialised":
            logits = torch.cumsum(logits, dim=-1)
        with torch.autocast("cpu", enabled=False):
            pruned = k2.rnnt_loss_pruned(
                logits=logits.float(), symbols=symbols, ranges=ranges, termination_symbol=0,
                boundary=boundary, reduction="sum",
            )
        if kind == "skewed" and type(am_pruned).__name__ != "Tensor":
            pruned = 1.001 * pruned
        if kind == "nan":
            pruned = pruned * float("nan")
        return 0.5 * simple + pruned


def losses_of(model, batch, kind):
    return model(batch, kind)
'''


PROJECTION = "        self.simple_lm_proj = nn.Linear(H, C)\n"
CTC_HEAD = (
    (
        PROJECTION,
        f"{PROJECTION}        self.ctc_output = nn.Sequential(\n"
        "            nn.Dropout(0.1), nn.Linear(H, C), nn.LogSoftmax(dim=-1)\n        )\n",
    ),
    (
        "return 0.5 * simple + pruned",
        "ctc = nn.functional.ctc_loss(\n"
        "            self.ctc_output(am).permute(1, 0, 2), symbols, lens, symbol_lens,\n"
        "            reduction='sum', zero_infinity=True,\n        )\n"
        "        return 0.5 * simple + pruned + 0.2 * ctc",
    ),
)


class Recipe:
    """A recipe folder, and ways to run it."""

    def __init__(self, folder):
        self.folder = folder
        self.train_py = folder / "train.py"
        self.train_py.write_text(TRAIN_PY)
        (folder / "toy_model.py").write_text(MODEL_PY)

    def edit(self, *changes, name="train.py"):
        """Put new text in the place of old in one file of the recipe, for each (old, new)."""
        path = self.folder / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)

    def add_ctc_head(self):
        """Train with icefall's CTC head beside the transducer."""
        self.edit(*CTC_HEAD, name="toy_model.py")

    def subprocess(self, *words, module="panda_icefall"):
        """`python -m panda_icefall words`, from the recipe's folder."""
        start = [sys.executable, "-m", module] if module else [sys.executable]
        return subprocess.run(
            [*start, *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,  # of a run that hangs, however busy the machine is
            check=False,
        )

    def lines(self, name):
        """The lines of one output file of the recipe."""
        return (self.folder / name).read_text().split()

    def floats(self, name):
        """The same as numbers."""
        return [float(line) for line in self.lines(name)]

    def rows(self, name):
        """The rows of one memory log, its header and its end among them."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def phases(self, name):
        """The rows of a memory log that are a phase of a step."""
        return [row for row in self.rows(name) if row["row"] == "phase"]

    def parts(self, name):
        """The rows of a memory log that are a part of a phase."""
        return [row for row in self.rows(name) if row["row"] == "part"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_model", raising=False)
    yield Recipe(tmp_path)
    sys.modules.pop("toy_model", None)


@pytest.fixture
def port():
    """A port that is free for DDP."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]

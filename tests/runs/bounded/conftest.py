"""A checkout with the toy recipe in it, which resumes from its own checkpoints as icefall's do."""

import shutil
import types

import pytest
import yaml

from panda_icefall.runs.bounded import request
from panda_icefall.runs.bounded import run as bounded_run

OPTIONS = """
    for name in ("manifest-dir", "lang-dir"):
        parser.add_argument(f"--{name}", type=str)
    for name in ("start-epoch", "start-batch", "save-every-n", "average-period", "break-at"):
        parser.add_argument(f"--{name}", type=int, default=0 if name == "start-batch" else 10**9)
    return parser
"""
SAVE = """
        if str(params.batch_idx_train) == os.environ.get("TOY_SLEEPS_AT"):
            time.sleep(60)
        if params.batch_idx_train == params.break_at:
            raise RuntimeError("the toy recipe breaks on purpose")
        if params.batch_idx_train % params.save_every_n == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "batch_idx_train": params.batch_idx_train,
            }
            torch.save(state, Path(params.exp_dir, f"checkpoint-{params.batch_idx_train}.pt"))
        with Path(params.exp_dir, f"losses-{rank}.txt")"""
LOAD = """
    if params.start_batch > 0:
        state = torch.load(Path(params.exp_dir, f"checkpoint-{params.start_batch}.pt"))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        params.batch_idx_train = state["batch_idx_train"]
    for epoch in range(params.num_epochs):"""


# icefall's options, and checkpoints within an epoch.
RESUMING = (
    ("    return parser\n", OPTIONS),
    ('        with Path(params.exp_dir, f"losses-{rank}.txt")', SAVE),
    ("    for epoch in range(params.num_epochs):", LOAD),
    ("            import os\n            import signal\n", "            import signal\n"),
    ("import json\n", "import json\nimport os\nimport time\n"),
    ("mkdir(exist_ok=True)", "mkdir(parents=True, exist_ok=True)"),
    (
        'torch.save(state, Path(params.exp_dir, f"epoch-{epoch}.pt"))',
        'torch.save({"model": state}, Path(params.exp_dir, f"epoch-{epoch + 1}.pt"))',
    ),
)


@pytest.fixture
def checkout(recipe, tmp_path, monkeypatch):
    """`root`, `config` and `out` of a bounded run, whose data checks are noted in `calls`."""
    root = tmp_path / "icefall-checkout"
    folder = root / "egs/aishell/ASR/pruned"
    folder.mkdir(parents=True)
    (root / "icefall").mkdir()
    (root / "icefall/__init__.py").write_text("")
    recipe.edit(*RESUMING)
    for name in ("toy_model.py", "train.py"):
        shutil.copy(recipe.folder / name, folder)

    calls = []
    monkeypatch.setattr(request, "check_data", lambda *a: calls.append(("check", *a)))

    def synth_data(*given):
        calls.append(("make", *given))
        given[1].mkdir()

    monkeypatch.setattr(bounded_run, "synth_data", synth_data)
    monkeypatch.setattr(request, "data_arguments", lambda *a: ["--manifest-dir", str(a[2])])

    config = tmp_path / "config.yaml"
    content = {
        "recipe": "egs/aishell/ASR/pruned/train.py",
        "train_args": {"num-batches": 6},
        "data": {"corpus": "aishell", "lang": "char", "vocab_size": 11},
        "bounds": {"max_batches": 4, "max_minutes": 30},
        "contract": {"batches": 2, "tolerances": {"parameter_rel_l2": 1e-6}},
    }
    config.write_text(yaml.safe_dump(content))
    return types.SimpleNamespace(
        root=root, config=config, out=tmp_path / "out", calls=calls, content=content
    )

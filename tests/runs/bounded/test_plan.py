"""The child processes of a bounded run, and the environment they get."""

from dataclasses import replace
from pathlib import Path

import pytest

from panda_icefall.runs import split_panda_arguments
from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.plan import child_environment, plan_stages
from panda_icefall.runs.hooks.contract_check import COMPARED

CONTENT = {
    "recipe": "egs/aishell/ASR/zipformer/train.py",
    "train_args": {"world-size": 1},
    "data": {"corpus": "aishell", "lang": "char", "vocab_size": 11, "synthetic": {"seed": 7}},
    "bounds": {"max_batches": 30, "max_minutes": 5.0, "resume_after": 20},
    "contract": {"batches": 3, "update_steps": 2, "tolerances": {"loss_rel": 1e-6}},
    "memory": {"workspace_mib": 4.0},
    "projections": {"am": "am_proj", "lm": "lm_proj"},
    "ctc": True,
}


@pytest.fixture
def stages():
    config = BoundedConfig.model_validate(CONTENT)
    planned = plan_stages(config, Path("/x/train.py"), ["--lang-dir", "/d"], Path("/out"))
    return {stage.name: stage for stage in planned}


def options_of(stage):
    words = list(stage.command)
    train_py = words.index("/x/train.py")
    assert tuple(words[train_py + 1 :]) == stage.arguments
    return split_panda_arguments(stage.arguments, is_check=words[train_py - 1] == "check")


def test_every_command_is_one_that_the_launcher_understands(stages):
    assert list(stages) == ["contract", "dense", "routed", "twin", "stopped", "resumed"]
    for stage in stages.values():
        options, words = options_of(stage)
        assert options.workspace_mib == 4.0
        assert options.projections == {"am": "am_proj", "lm": "lm_proj"}
        assert options.ctc
        assert words[:2] == ["--exp-dir", str(stage.exp_dir)]
        assert words[2:8] == ["--lang-dir", "/d", "--world-size", "1", "--num-epochs", "1"]


def test_every_stage_says_how_far_it_is(stages, tmp_path):
    steps = {name: stage.steps for name, stage in stages.items()}
    assert steps == {
        "contract": 3, "dense": 30, "routed": 30, "twin": 30, "stopped": 20, "resumed": 10,
    }  # fmt: skip
    files = {"log": tmp_path / "output.log", "memory_log": tmp_path / "memory.jsonl"}
    files["log"].write_text(f"{COMPARED} 1 of 3, 2.0 s\n{COMPARED} 2 of 3, 4.0 s\n")
    files["memory_log"].write_text('{"row": "phase", "phase": "backward_update"}\n')
    done = {name: replace(stage, **files).count().read() for name, stage in stages.items()}
    assert done == {**dict.fromkeys(stages, 1), "contract": 2}


def test_the_contract_gets_its_bounds(stages):
    options, _ = options_of(stages["contract"])
    assert (options.check_batches, options.check_update_steps) == (3, 2)
    assert options.check_tolerances == {"loss_rel": 1e-6}
    assert options.stop_after_check


@pytest.mark.parametrize(
    ("name", "use_panda", "batches", "is_twin"),
    [
        ("dense", False, 30, False),
        ("routed", True, 30, False),
        ("twin", False, 30, True),
        ("stopped", True, 20, False),
        ("resumed", True, 10, False),
    ],
)
def test_arms_differ_in_what_they_are_for_only(stages, name, use_panda, batches, is_twin):
    options, words = options_of(stages[name])
    assert (options.use_panda, options.max_batches) == (use_panda, batches)
    assert options.last_bit_twin is is_twin
    assert options.batch_seed == 7
    assert options.memory_log == Path("/out") / name / "memory.jsonl"
    assert words[words.index("--save-every-n") + 1] == "20"
    assert ("--start-batch" in words) is (name == "resumed")


def test_the_resumed_run_goes_on_in_the_folder_of_the_stopped_one(stages):
    assert stages["resumed"].exp_dir == stages["stopped"].exp_dir
    assert len({stage.exp_dir for stage in stages.values()}) == 5
    assert len({stage.log for stage in stages.values()}) == 6


def test_a_recipe_that_saves_epochs_is_not_resumed_and_gets_its_sizes():
    sizes = {"nhead": 4, "lr": 1e-3}
    content = {**CONTENT, "checkpoints": "epochs", "recipe_params": sizes}
    config = BoundedConfig.model_validate(content)
    planned = plan_stages(config, Path("/x/train.py"), [], Path("/out"))
    assert [stage.name for stage in planned] == ["contract", "dense", "routed", "twin"]
    for stage in planned:
        options, words = options_of(stage)
        assert options.recipe_params == {"nhead": "4", "lr": "0.001"}
        assert words[2:] == ["--world-size", "1", "--num-epochs", "1", "--start-epoch", "0"]


def test_the_environment_hides_gpus_from_cpu_runs_only(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    on_cpu = child_environment(Path("/icefall"), "cpu")
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert on_cpu["MALLOC_MMAP_THRESHOLD_"] == str(8 * 2**20)
    assert on_cpu["PYTHONPATH"].split(":")[1:] == ["/icefall", "/mine"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    on_cuda = child_environment(Path("/icefall"), "cuda")
    assert on_cuda["CUDA_VISIBLE_DEVICES"] == "3"
    assert "MALLOC_MMAP_THRESHOLD_" not in on_cuda

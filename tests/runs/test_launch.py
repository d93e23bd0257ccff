"""A toy recipe in icefall's manner, started with and without PANDA."""

import argparse
import re
import sys
from pathlib import Path

import pytest
import torch

import panda_icefall
from panda_icefall.routing import PandaError
from panda_icefall.runs import (
    NothingTrainedError,
    NotRoutedError,
    PandaOptions,
    UsageError,
    run_recipe,
)

PANDA = PandaOptions(use_panda=True)


def test_without_options_the_recipe_runs_as_if_started_directly(recipe):
    done = recipe.subprocess("train.py", "--exp-dir", "direct", module=None)
    assert done.returncode == 0, done.stderr
    assert run_recipe(recipe.train_py, ["--exp-dir", "plain"], PandaOptions()) == 0
    assert recipe.lines("plain/losses-0.txt") == recipe.lines("direct/losses-0.txt")
    assert recipe.lines("plain/valid-0.txt") == recipe.lines("direct/valid-0.txt")


def test_without_options_nothing_is_wrapped(recipe):
    looking = (
        "def main():\n"
        "    import argparse, torch.multiprocessing as mp\n"
        "    assert not hasattr(compute_loss, '__wrapped__')\n"
        "    assert not hasattr(train_one_epoch, '__wrapped__')\n"
        "    assert not hasattr(mp.spawn, '__wrapped__')\n"
        "    assert not hasattr(argparse.ArgumentParser.parse_known_args, '__wrapped__')\n"
        "    import panda_icefall\n"
        "    assert panda_icefall.status().replaced == ()\n"
    )
    recipe.edit(("def main():", looking))
    assert run_recipe(recipe.train_py, [], PandaOptions()) == 0


def test_routed_training_prints_the_losses_of_dense_training(recipe, capsys):
    arguments = ["--num-batches", "6", "--exp-dir"]
    assert run_recipe(recipe.train_py, [*arguments, "dense"], PandaOptions()) == 0
    assert run_recipe(recipe.train_py, [*arguments, "routed"], PANDA) == 0
    for name in ("losses-0.txt", "valid-0.txt"):
        dense, routed = (recipe.floats(f"{arm}/{name}") for arm in ("dense", "routed"))
        assert routed == pytest.approx(dense, rel=1e-5)
    summary = capsys.readouterr().err
    assert "losses routed / dense" in summary
    assert "8 / 0" in summary  # six training batches and two of validation
    assert panda_icefall.status().replaced == ()


def test_the_recipe_sees_the_parameters_of_a_direct_start(recipe):
    run_recipe(recipe.train_py, ["--exp-dir", "exp"], PandaOptions())
    dense = recipe.lines("exp/params-0.json")
    run_recipe(recipe.train_py, ["--exp-dir", "exp"], PandaOptions(use_panda=True, max_batches=2))
    assert recipe.lines("exp/params-0.json") == dense


@pytest.mark.parametrize("options", [PandaOptions(), PANDA])
def test_help_shows_the_panda_group_beside_the_recipes_own(recipe, capsys, options):
    original = argparse.ArgumentParser.parse_known_args
    assert run_recipe(recipe.train_py, ["--help"], options) == 0
    text = capsys.readouterr().out
    assert "--world-size" in text
    assert "PANDA:" in text
    for name in "workspace-mib adjoint-tolerance max-batches check-batches memory-log".split():
        assert f"--panda-{name}" in text
    assert argparse.ArgumentParser.parse_known_args is original


def test_a_recipe_without_the_pruned_loss_stops_and_says_what_it_called(recipe):
    with pytest.raises(
        NotRoutedError, match=r"full-lattice loss was seen .*; called instead: .*ctc_loss \(1 times"
    ):
        run_recipe(recipe.train_py, ["--kind", "ctc", "--exp-dir", "exp"], PANDA)
    assert len(recipe.lines("exp/losses-0.txt")) == 1
    assert not (recipe.folder / "exp/bad-model-0.pt").exists()
    assert torch.nn.functional.ctc_loss.__name__ == "ctc_loss"
    assert not hasattr(torch.nn.functional.ctc_loss, "__wrapped__")


def test_an_unrecordable_joiner_stops_the_run_with_the_operation_named(recipe):
    with pytest.raises(NotRoutedError, match=r"ordinary logits.*turned into a tensor by .*cumsum"):
        run_recipe(recipe.train_py, ["--kind", "materialised"], PANDA)


def test_a_strict_run_ends_at_the_first_dense_loss(recipe):
    options = PandaOptions(use_panda=True, strict=True)
    with pytest.raises(PandaError, match=r"strict=True: .* by .*cumsum"):
        run_recipe(recipe.train_py, ["--kind", "materialised"], options)
    assert not (recipe.folder / "exp/losses-0.txt").exists()
    assert run_recipe(recipe.train_py, [], options) == 0


def test_a_one_batch_epoch_is_verified_too(recipe):
    with pytest.raises(NotRoutedError):
        run_recipe(recipe.train_py, ["--kind", "ctc", "--num-batches", "1"], PANDA)


def test_a_bounded_run_ends_with_a_checkpoint_and_a_summary(recipe, capsys):
    options = PandaOptions(max_batches=6)
    assert run_recipe(recipe.train_py, ["--num-epochs", "5", "--exp-dir", "exp"], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 6
    assert (recipe.folder / "exp/epoch-1.pt").exists()
    assert not (recipe.folder / "exp/epoch-2.pt").exists()
    assert not (recipe.folder / "exp/done-0").exists()
    text = capsys.readouterr().err
    assert "stopped early, as asked" in text
    assert "losses routed" not in text


def test_a_bound_beyond_the_data_changes_nothing(recipe):
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], PandaOptions(max_batches=99)) == 0
    assert (recipe.folder / "exp/done-0").exists()


def test_errors_of_the_recipe_come_through_and_nothing_stays_behind(recipe, capsys):
    main, spawn = sys.modules["__main__"], torch.multiprocessing.spawn
    with pytest.raises(RuntimeError, match="fails on purpose"):
        run_recipe(recipe.train_py, ["--fail-at", "1", "--exp-dir", "exp"], PANDA)
    assert (recipe.folder / "exp/bad-model-0.pt").exists()
    assert sys.modules["__main__"] is main
    assert torch.multiprocessing.spawn is spawn
    assert panda_icefall.status().replaced == ()
    assert "PANDA summary" in capsys.readouterr().err


@pytest.mark.parametrize("options", [PandaOptions(), PANDA])
def test_an_import_that_fails_while_training_keeps_its_traceback(recipe, options):
    recipe.edit(("        scheduler.step()\n", "        import no_such_module\n"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
        run_recipe(recipe.train_py, [], options)
    assert caught.traceback[-1].path == recipe.train_py
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("options", [PandaOptions(), PANDA])
@pytest.mark.parametrize(("code", "status"), [("3", 3), ("None", 0), ("'bad luck'", 1)])
def test_the_recipes_exit_status_is_the_runs(recipe, capsys, options, code, status):
    with recipe.train_py.open("a") as f:
        f.write(f"    import sys; sys.exit({code})\n")
    assert run_recipe(recipe.train_py, [], options) == status
    assert ("bad luck" in capsys.readouterr().err) == (status == 1)


@pytest.mark.parametrize("name", ["compute_loss", "train_one_epoch"])
def test_a_file_without_the_functions_of_a_recipe_is_refused(recipe, name, capsys):
    recipe.edit((name, "something"))
    with pytest.raises(UsageError, match=rf"defines no {name}\(\)"):
        run_recipe(recipe.train_py, [], PANDA)
    assert "summary" not in capsys.readouterr().err


def test_a_train_one_epoch_without_a_known_data_loader_is_refused(recipe):
    recipe.edit(("train_dl", "feeder"))
    with pytest.raises(UsageError, match=r"train_one_epoch\(\).*expected one named train_dl"):
        run_recipe(recipe.train_py, [], PANDA)


def test_a_file_without_guard_runs_only_without_options(recipe):
    recipe.edit(('if __name__ == "__main__":', "if True:"))
    assert run_recipe(recipe.train_py, [], PandaOptions()) == 0
    with pytest.raises(UsageError, match="no top-level"):
        run_recipe(recipe.train_py, [], PANDA)


def test_a_recipe_that_imports_its_training_loop_is_routed_and_verified(recipe):
    text = recipe.train_py.read_text()
    (recipe.folder / "toy_loop.py").write_text(text)
    recipe.train_py.write_text(
        "from toy_loop import main, train_one_epoch\n\n"
        'if __name__ == "__main__":\n    import toy_loop\n'
        "    toy_loop.train_one_epoch = train_one_epoch\n    main()\n"
    )
    try:
        assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], PANDA) == 0
        with pytest.raises(NotRoutedError, match="ctc_loss"):
            run_recipe(recipe.train_py, ["--kind", "ctc"], PANDA)
        assert not hasattr(sys.modules["toy_loop"].compute_loss, "__wrapped__")
    finally:
        sys.modules.pop("toy_loop")


def test_a_run_without_any_training_batch_is_not_taken_for_a_routed_one(recipe):
    with pytest.raises(NothingTrainedError, match="ended without a training batch that PANDA saw"):
        run_recipe(recipe.train_py, ["--num-epochs", "0", "--exp-dir", "exp"], PANDA)


@pytest.mark.parametrize(
    "options",
    [
        PandaOptions(max_batches=1),
        PandaOptions(check_batches=1),
        PandaOptions(memory_log=Path("m.jsonl")),
        PandaOptions(batch_seed=1),
        PandaOptions(last_bit_twin=True),
    ],
)
def test_an_option_that_never_met_a_training_batch_is_no_success(recipe, options):
    with pytest.raises(NothingTrainedError, match=r"train\.py ended without a training batch"):
        run_recipe(recipe.train_py, ["--num-epochs", "0"], options)
    assert run_recipe(recipe.train_py, ["--num-epochs", "0"], PandaOptions()) == 0


def test_a_recipe_that_fails_before_it_trains_keeps_its_own_status(recipe):
    recipe.edit(("        run(0, 1, args)\n", "        exit(4)\n"))
    assert run_recipe(recipe.train_py, [], PandaOptions(max_batches=1)) == 4


def test_batches_that_a_resumed_epoch_skips_are_not_counted(recipe):
    counted = "        params.batch_idx_train += 1\n"
    recipe.edit((counted, "        if batch_idx < 2:\n            continue\n" + counted))
    options = PandaOptions(use_panda=True, max_batches=1)
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 1


def test_a_bound_inside_the_last_epoch_is_said(recipe, capsys):
    options = PandaOptions(use_panda=True, max_batches=2)
    assert run_recipe(recipe.train_py, ["--num-epochs", "1"], options) == 0
    assert "stopped early, as asked" in capsys.readouterr().err


def test_what_was_not_routed_is_said_before_the_validation(recipe):
    with pytest.raises(NotRoutedError, match="no loss was routed"):
        run_recipe(
            recipe.train_py,
            ["--kind", "ctc", "--num-batches", "1"],
            PandaOptions(use_panda=True),
        )
    assert not (recipe.folder / "exp/valid-0.txt").exists()


def test_the_recipe_sees_its_path_as_it_was_typed(recipe):
    recipe.train_py.write_text(
        "import sys\nif __name__ == '__main__':\n    raise OSError(sys.argv)"
    )
    with pytest.raises(OSError, match=r"\['train.py', 'a'\]"):
        run_recipe("train.py", ["a"], PandaOptions())


def test_ctrl_c_is_the_recipes_own(recipe):
    recipe.train_py.write_text("if __name__ == '__main__':\n    raise KeyboardInterrupt\n")
    direct = recipe.subprocess("train.py", module=None)
    launched = recipe.subprocess("run", "train.py")
    assert launched.returncode == direct.returncode
    assert launched.stderr.splitlines()[-1] == direct.stderr.splitlines()[-1] == "KeyboardInterrupt"


SAVED = (
    'torch.save(state, Path(params.exp_dir, f"epoch-{epoch}.pt"))',
    "torch.save({'model': state, **params}, Path(params.exp_dir, f\"epoch-{epoch}.pt\"))",
)


def test_log_checkpoint_and_summary_say_that_panda_was_on_and_with_what(recipe, capsys, caplog):
    caplog.set_level("INFO")
    recipe.edit(SAVED)
    options = PandaOptions(use_panda=True, workspace_mib=2.0)
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp", "--num-epochs", "2"], options) == 0
    words = "--use-panda 1 --panda-workspace-mib 2"
    word = f"panda-icefall {panda_icefall.__version__}: {words}"
    assert caplog.messages.count(f"panda: {word}") == 1
    for epoch in range(2):  # plain text: loads where there is no PANDA
        path = recipe.folder / f"exp/epoch-{epoch}.pt"
        assert torch.load(path, weights_only=True)["panda"] == word
    assert re.search(rf"PANDA +│ ON: {words} ", capsys.readouterr().err)


def test_a_dense_run_under_the_launcher_says_that_panda_is_off(recipe, capsys, caplog):
    caplog.set_level("INFO")
    recipe.edit(SAVED)
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], PandaOptions(max_batches=2)) == 0
    assert re.search(r"PANDA +│ OFF, the recipe trained dense; --use-panda 1", summary_of(capsys))
    assert "--panda-max-batches 2; PANDA is OFF, the recipe trains dense" in caplog.text
    assert "panda" not in torch.load(recipe.folder / "exp/epoch-0.pt", weights_only=True)


def test_a_check_says_that_both_were_compared_and_what_comes_next(recipe, capsys, caplog):
    caplog.set_level("INFO")
    options = PandaOptions(check_batches=1, stop_after_check=True)
    assert run_recipe(recipe.train_py, [], options) == 0
    printed = summary_of(capsys)
    assert re.search(r"PANDA +│ compared with dense in the contract check; the recipe", printed)
    assert "stopped after the check; `panda-icefall run` trains it" in printed
    assert "OFF" not in printed + caplog.text
    assert "checkpoint" not in printed


def summary_of(capsys):
    return capsys.readouterr().err


def test_the_summary_shows_the_peak_and_with_a_memory_log_what_the_losses_added(recipe, capsys):
    assert run_recipe(recipe.train_py, [], PANDA) == 0
    summary = summary_of(capsys)
    (peak,) = re.findall(r"peak memory of the process +│ (\d+) MiB resident on cpu", summary)
    assert int(peak) > 50
    assert "added by the losses" not in summary

    more = "lm_only_scale=0.25 + 0.0 * float(torch.ones(2**24).sum()),"  # 64 MiB, freed at once
    recipe.edit(("lm_only_scale=0.25,", more), name="toy_model.py")
    sys.modules.pop("toy_model")
    options = PandaOptions(use_panda=True, memory_log=recipe.folder / "m.jsonl")
    assert run_recipe(recipe.train_py, [], options) == 0
    summary = summary_of(capsys)
    (peak,) = re.findall(r"peak memory of the process +│ (\d+) MiB resident on cpu", summary)
    added = re.findall(
        r"added by the losses of a step, forward +│ (\d+) MiB, ([\d.]+)% of the peak", summary
    )
    if recipe.phases("m.jsonl")[0]["peak_is_since_start"]:  # /proc is read-only here
        assert added == []
    else:
        ((mib, share),) = added
        assert 60 <= int(mib) <= 200
        assert float(share) == pytest.approx(100 * int(mib) / int(peak), abs=1)


@pytest.mark.parametrize("option", ["1e9", "1e7"])
def test_a_workspace_beyond_the_machine_is_warned_of_in_the_run(recipe, caplog, option):
    options = PandaOptions(use_panda=True, workspace_mib=float(option), max_batches=1)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert caplog.text.count("--panda-workspace-mib: got") == 1

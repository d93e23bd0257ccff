"""The guard and the report on losses that are not finite, in the unmodified AISHELL zipformer."""

import json
import re
import sys

import numpy
import pytest
from icefall_run import SMALL_ZIPFORMER, icefall_root, logged_losses, run

pytestmark = [pytest.mark.k2, pytest.mark.icefall, pytest.mark.slow]


def command(*words):
    return run(
        sys.executable, "-m", "panda_icefall", *words, cwd=icefall_root() / "egs/aishell/ASR"
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Runs the recipe for some batches on synthetic data, in a folder of its own."""
    folder = tmp_path_factory.mktemp("aishell")
    data = folder / "data"
    size = ("--utterances", 80, "--vocab", 500, "--seed", 42)
    command("synth", "aishell", "--out", data, *size, "--icefall-root", icefall_root())

    def run_recipe(name, *arguments):
        where = ["--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char"]
        where += ["--exp-dir", folder / name, "--use-panda", 1]
        return command("run", "zipformer/train.py", *where, *SMALL_ZIPFORMER, *arguments)

    run_recipe.folder = folder
    return run_recipe


def test_both_losses_of_every_batch_are_compared_and_are_the_dense_ones(recipe):
    output = recipe("guarded", "--panda-max-batches", 3, "--panda-verify-every", 1)
    summary = output[output.index("PANDA summary") :]
    assert re.search(r"losses compared with dense\W+6 of 3 batches", summary)
    assert "not finite" not in output


def test_the_first_utterance_without_numbers_is_named_and_training_goes_on(recipe):
    broken = sorted((recipe.folder / "data").rglob("feats_aishell-train/**/*.npy"))[::5]
    assert len(broken) > 10
    for path in broken:
        features = numpy.load(path)
        features[3:5] = numpy.nan
        numpy.save(path, features)
    log = recipe.folder / "m.jsonl"
    output = recipe("broken", "--panda-max-batches", 4, "--panda-memory-log", log)
    assert len(logged_losses(log)) == 4  # as dense: this recipe does not look
    found = json.loads((recipe.folder / "m.non-finite.json").read_text())
    first = found["findings"][0]
    assert not first["features_are_finite"]
    assert first["cut"].rpartition("-")[2] in {path.stem.rpartition("-")[2] for path in broken}
    assert first["quantity"] == "encoder output"
    assert first["frames"] == found["lengths"][first["utterance"]]["T"]
    assert (recipe.folder / "broken").samefile(found["batch"].rpartition("/")[0])
    assert f"({first['cut']}); details in" in output
    assert "Losses that are not finite in" in output

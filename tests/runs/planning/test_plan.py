"""The command from its words to its figures: sizes, batches, a run's log, what is advised."""

import gzip
import json
import random
import re

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.planning.batches import (
    epoch_of_batches,
    read_durations,
    shuffled_buckets,
)
from panda_icefall.runs.planning.plan import MOST_EPOCHS, make_plan
from panda_icefall.runs.planning.recipe_sizes import recipe_defaults
from panda_icefall.runs.planning.request import gather_inputs, parse_memory

GIB, MIB = 2**30, 2**20

TRAIN_PY = """
import argparse
from asr_datamodule import DataModule


def get_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bpe-model", type=str, default="data/lang_bpe_500/bpe.model")
    parser.add_argument("--encoder-dim", type=str, default="192,256,384,256")
    parser.add_argument("--prune-range", type=int, default=7, help="s_range")
    parser.add_argument("--use-fp16", type=bool, default=True)
    return parser


def get_params():
    return {"subsampling_factor": 8, "joiner_dim": 640, "decoder_dim": 320}


if __name__ == "__main__":
    pass
"""
DATA_PY = """
class DataModule:
    def add_arguments(cls, parser):
        group = parser.add_argument_group("data")
        group.add_argument("--max-duration", type=int, default=450.0)
        group.add_argument("--num-buckets", type=int, default=12)
"""


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "egs/mine/ASR/zipformer"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN_PY)
    (folder / "asr_datamodule.py").write_text(DATA_PY)
    return folder


def test_defaults_are_those_of_the_recipes_own_files(recipe):
    found = recipe_defaults(recipe)
    assert {name: item.value for name, item in found.items()} == {
        "prune-range": 7,
        "max-duration": 450.0,
        "num-buckets": 12,
        "joiner-dim": 640,
        "encoder-dim": 384,
        "decoder-dim": 320,
        "dtype": "fp16",
        "frame-rate": 12.5,
        "vocab": 500,
    }
    assert found["max-duration"].source == "asr_datamodule.py"


def test_the_vocabulary_of_a_data_folder_counts_most(recipe):
    text = TRAIN_PY.replace("--bpe-model", "--lang-dir").replace("/lang_bpe_500/bpe.model", "/lang")
    (recipe / "train.py").write_text(text)
    tokens = recipe.parent / "data/lang/tokens.txt"
    tokens.parent.mkdir(parents=True)
    tokens.write_text("<blk> 0\na 1\nb 2\n#0 3\n")
    assert recipe_defaults(recipe)["vocab"].value == 3


def test_a_recipe_without_a_pruned_loss_is_refused(recipe):
    (recipe / "train.py").write_text(TRAIN_PY.replace("prune-range", "beam"))
    with pytest.raises(UsageError, match="has no option --prune-range"):
        recipe_defaults(recipe)
    with pytest.raises(UsageError, match=r"expected a folder with a train\.py"):
        recipe_defaults(recipe.parent)


@pytest.mark.parametrize(
    ("text", "size"),
    [("32GiB", 32 * GIB), ("24GB", 24 * 10**9), ("16", 16 * GIB), ("0.5 gib", GIB // 2)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_memory("--gpu-mem", text) == size


@pytest.mark.parametrize("text", ["", "-4GiB", "0", "many", "4XB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UsageError, match="--gpu-mem: got"):
        parse_memory("--gpu-mem", text)


def plan(command, *words):
    status, text, error = command("plan", *words, "--json")
    assert status == 0, error
    return json.loads(text)


def test_the_command_line_takes_the_place_of_the_recipe(command, recipe):
    found = plan(command, recipe, "--gpu-mem", "24GiB", "--vocab", "6000", "--dtype", "fp32")
    assert found["sizes"] == {
        "C": 6000,
        "H": 640,
        "am_dim": 384,
        "lm_dim": 320,
        "s_range": 7,
        "half": False,
    }
    assert found["sources"]["vocab"] == "6000 (command line)"
    assert found["sources"]["joiner-dim"] == "640 (train.py)"
    assert found["max_duration"] == 450.0


def test_more_memory_admits_longer_batches_and_routing_longer_ones(command):
    longest = [
        plan(command, "--vocab", 6000, "--gpu-mem", f"{size}GiB")["largest_max_duration"]
        for size in (8, 16, 24)
    ]
    dense = [found["dense"] for found in longest]
    assert 0 < dense[0] < dense[1] < dense[2]
    assert all(found["routed"] > 4 * found["dense"] for found in longest)


def test_the_largest_that_fits_is_the_largest(command):
    words = ["--vocab", 6000, "--gpu-mem", "8GiB", "--utterance", 5, "--reserve", "1GiB"]
    longest = plan(command, *words)["largest_max_duration"]["dense"]
    for seconds, fits in ((longest, True), (longest + 5, False)):
        peak = plan(command, *words, "--max-duration", seconds)["peak_bytes"]["dense"]
        assert (peak <= 7 * GIB) is fits


def test_what_is_printed_says_that_the_encoder_is_not_in_it(command):
    status, text, _ = command("plan", "--vocab", 4336, "--gpu-mem", "32GiB")
    assert status == 0
    assert "NOT in these figures" in text
    assert "--from-run" in text
    assert re.search(r"set: --use-panda 1: the losses then take \d+ MiB instead of [\d,]+ at", text)
    assert "Losses alone, without the encoder: Largest --max-duration" in " ".join(text.split())
    assert "Calculated, not measured" in text


def test_without_classes_there_is_no_plan(command):
    status, _, error = command("plan", "--gpu-mem", "32GiB")
    assert status == 2
    assert "--vocab: got none, expected the number of classes; give it, or a RECIPE_DIR" in error
    status, _, error = command("plan", "--vocab", 9, "--gpu-mem", "1GiB")
    assert status == 2
    assert "--reserve: got 1.5GiB, expected less than --gpu-mem (1GiB)" in error


def cuts_in(path, durations):
    with gzip.open(path, "wt") as file:
        for duration in durations:
            file.write(json.dumps({"id": "a", "duration": duration}) + "\n")
    return path


def test_cuts_beyond_what_the_recipe_keeps_are_left_out(tmp_path):
    path = cuts_in(tmp_path / "cuts.jsonl.gz", [0.5, 1.0, 7.5, 30.0])
    assert read_durations(path, 1.0, 20.0) == [1.0, 7.5]
    with pytest.raises(UsageError, match="has 4 cuts, none of 40 to 50 s"):
        read_durations(path, 40.0, 50.0)
    (tmp_path / "cuts.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="--cuts: cannot read"):
        read_durations(tmp_path / "cuts.jsonl", 1.0, 20.0)


def test_it_is_told_how_much_of_a_large_file_is_read(tmp_path):
    told = []
    path = cuts_in(tmp_path / "cuts.jsonl.gz", [5.0 + i % 7 for i in range(20_000)])
    assert len(read_durations(path, 1.0, 20.0, told.append)) == 20_000
    assert len(told) == 4
    assert sorted(told) == told
    assert 0 < told[0] <= told[-1] <= 100
    (tmp_path / "cuts.jsonl").write_text(gzip.decompress(path.read_bytes()).decode())
    assert len(read_durations(tmp_path / "cuts.jsonl", 1.0, 20.0, told.append)) == 20_000
    assert len(told) == 8


def test_it_is_told_how_many_epochs_were_gone_through(tmp_path):
    cuts = cuts_in(tmp_path / "cuts.jsonl.gz", [5.0] * 50)
    inputs = gather_inputs(None, {"vocab": 500}, gpu_mem="4GiB", reserve="1GiB", cuts=cuts)
    told = []
    make_plan(inputs, told.append)
    assert told == list(range(1, len(told) + 1))
    assert MOST_EPOCHS / 2 < len(told) <= MOST_EPOCHS


def test_batches_are_those_of_the_sampler():
    """Against lhotse's own, which draws them in another order."""
    lhotse = pytest.importorskip("lhotse")
    from lhotse.dataset import DynamicBucketingSampler

    draw = random.Random(5)
    durations = [round(draw.uniform(1, 20), 2) for _ in range(2000)]
    cuts = lhotse.CutSet.from_cuts(
        lhotse.MonoCut(id=str(i), start=0, duration=d, channel=0) for i, d in enumerate(durations)
    )
    sampler = DynamicBucketingSampler(cuts, max_duration=100, num_buckets=10, shuffle=True, seed=3)
    theirs = [(len(batch), max(c.duration for c in batch)) for batch in sampler]
    ours = list(epoch_of_batches(shuffled_buckets(durations, 10), 100))
    assert sum(count for count, _ in ours) == len(durations)
    for made in (ours, theirs):
        padded = [count * longest for count, longest in made]
        assert max(padded) > 100  # the last utterance of a batch may be its longest
        assert sorted(padded)[len(padded) // 2] == pytest.approx(93, abs=6)
    assert len(ours) == pytest.approx(len(theirs), rel=0.05)
    largest = [max(c * longest for c, longest in made) for made in (ours, theirs)]
    assert largest[0] == pytest.approx(largest[1], rel=0.25)


def test_the_worst_batch_has_more_seconds_than_max_duration(command, tmp_path):
    draw = random.Random(5)
    path = cuts_in(tmp_path / "cuts.jsonl.gz", [draw.uniform(1, 20) for _ in range(3000)])
    found = plan(command, "--vocab", 4336, "--gpu-mem", "4GiB", "--cuts", path)
    batch = found["batches"]["dense"]
    assert batch["B"] * batch["T"] / 25 > 200
    typical = plan(command, "--vocab", 4336, "--gpu-mem", "4GiB")
    assert found["largest_max_duration"]["dense"] < typical["largest_max_duration"]["dense"]


def log_of(path, *, frames, is_routed=False, base=4000, per_frame=1.0, peak=9000):
    """A memory log on CUDA, sizes in MiB, whose encoder leaves ``per_frame`` for each frame."""
    common = {"row": "phase", "reserved_bytes": 0}
    rows = [{"row": "header", "options": {"use_panda": is_routed}, "versions": {}}]
    for step, count in enumerate(frames, 1):
        kept = int((base + per_frame * count) * MIB)
        rows += [
            {
                **common, "row": "part", "step": step, "phase": "encoder", "within": "compute_loss",
                "seconds": 0.1, "allocated_bytes": kept, "peak_bytes": kept,
            },
            {
                **common, "step": step, "phase": "compute_loss", "frames": count, "loss": 1.0,
                "seconds": 0.2, "allocated_bytes": kept, "peak_bytes": kept,
            },
            {
                **common, "step": step, "phase": "backward_update", "seconds": 0.3,
                "allocated_bytes": base * MIB, "peak_bytes": peak * MIB,
            },
        ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_gives_the_whole_step(command, tmp_path):
    log_of(tmp_path / "memory.jsonl", frames=[900, 1000, 1100], base=4000, per_frame=2.0)
    words = ["--vocab", 4336, "--gpu-mem", "32GiB", "--utterance", 4]
    found = plan(command, *words, "--from-run", tmp_path)
    assert found["calibration"]["base_bytes"] == 4000 * MIB
    assert found["calibration"]["frame_bytes"] == pytest.approx(2.0 * MIB)
    dense, alone = found["components"]["dense"], plan(command, *words)["components"]["dense"]
    assert dense["parameters, optimizer state"] == 4000 * MIB
    assert dense["encoder, kept for backward"] == 2 * MIB * 5000
    assert {name: size for name, size in dense.items() if name in alone} == alone
    longest = found["largest_max_duration"]
    assert longest["dense"] < longest["routed"] < 32 * 1024 / 2 / 25 + 5
    assert found["advice"].startswith(f"--use-panda 1 --max-duration {longest['routed']}, ")
    status, text, _ = command("plan", *words, "--from-run", tmp_path)
    assert status == 0
    assert "the whole step" in text
    # 40 s are 10 utterances: 4000 + 2000 and the losses, where 9000 were measured.
    assert "Its own peaks are met within -" in text
    assert "That run was dense" in text
    assert "Are these sizes those of that run?" in text


def test_sizes_that_a_run_was_given_beside_the_recipes_options_are_read(command, tmp_path):
    log = tmp_path / "memory.jsonl"
    log_of(log, frames=[900, 1000])
    header, *rows = log.read_text().splitlines(keepends=True)
    header = json.loads(header)
    header["argv"] = ["train.py", "--prune-range", "7"]
    header["options"]["recipe_params"] = {"joiner_dim": "384", "encoder_dim": "256"}
    log.write_text(json.dumps(header) + "\n" + "".join(rows))
    found = plan(command, "--vocab", 99, "--gpu-mem", "32GiB", "--from-run", tmp_path)
    assert (found["sizes"]["H"], found["sizes"]["s_range"]) == (384, 7)
    assert "words" not in found["calibration"]


def test_a_run_of_far_smaller_batches_is_said_to_tell_little(command, tmp_path):
    log_of(tmp_path / "memory.jsonl", frames=[90, 100], base=400, peak=450, is_routed=True)
    status, text, _ = command("plan", "--vocab", 99, "--gpu-mem", "32GiB", "--from-run", tmp_path)
    assert status == 0
    assert "That run's largest batch had 4 s: far longer ones are guessed from it" in text
    log_of(tmp_path / "memory.jsonl", frames=[9000, 10000], base=400, peak=9000, is_routed=True)
    text = command("plan", "--vocab", 99, "--gpu-mem", "32GiB", "--from-run", tmp_path)[1]
    assert "guessed from it" not in text


def test_a_routed_run_shows_what_the_encoders_backward_needs(command, tmp_path):
    log_of(tmp_path / "memory.jsonl", frames=[900, 1000], base=4000, peak=9000, is_routed=True)
    words = ["--vocab", 4336, "--gpu-mem", "32GiB", "--utterance", 4, "--from-run", tmp_path]
    found = plan(command, *words)
    routed = found["components"]["routed"]
    assert sum(routed.values()) == 4000 * MIB + 5 * MIB * 5000
    assert routed["encoder's backward, above all that"] > 0
    status, text, _ = command("plan", *words)
    assert status == 0
    assert "Its own peaks are met within +0% to +0%." in text
    assert "Are these sizes those of that run?" not in text
    assert "That run was dense" not in text


def test_the_options_of_the_run_take_the_place_of_defaults(command, tmp_path):
    path = tmp_path / "memory.jsonl"
    log_of(path, frames=[900, 1000])
    header, *rows = path.read_text().splitlines()
    given = "train.py --joiner-dim 64 --encoder-dim=48,96 --max-duration 15 --use-fp16 1 --seed 3"
    header = json.dumps({**json.loads(header), "argv": given.split()})
    path.write_text("\n".join([header, *rows]) + "\n")
    words = ["--vocab", 4336, "--gpu-mem", "32GiB", "--from-run", tmp_path]
    found = plan(command, *words, "--joiner-dim", 128)
    assert found["max_duration"] == 15
    assert found["sources"]["encoder-dim"] == "96 (that run)"
    assert found["sources"]["joiner-dim"] == "128 (command line)"
    assert found["sources"]["dtype"] == "fp16 (that run)"
    assert found["sources"]["decoder-dim"] == "512 (default)"


def test_a_run_that_tells_nothing_is_refused(command, tmp_path):
    words = ["plan", "--vocab", 4336, "--gpu-mem", "32GiB", "--from-run", tmp_path]
    status, _, error = command(*words)
    assert status == 2
    where = f"--from-run: {tmp_path}: an empty folder, expected a file that --panda-memory-log"
    assert error.startswith(f"panda-icefall: {where}")
    log_of(tmp_path / "memory.jsonl", frames=[900])
    assert "expected at least two whole steps" in command(*words)[2]


@pytest.mark.slow
def test_a_plan_can_be_drawn(command, tmp_path):
    png = tmp_path / "plan.png"
    words = ["--vocab", 4336, "--gpu-mem", "16GiB", "--figure", png]
    assert command("plan", *words)[0] == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    words[-1] = png / "below.png"
    status, _, error = command("plan", *words)
    assert status == 2
    assert f"--figure: got {png}/below.png, below the file {png}; expected a file" in error

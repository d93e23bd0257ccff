"""The embedded recipe: its data, its model's promises, training, decoding, PANDA, DDP."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

REPO = Path(__file__).parents[2]
RECIPE = REPO / "egs" / "tones" / "ASR" / "pruned_transducer"
COUNTS = {"train": 24, "dev": 6, "test": 6}
SMALL_DATA = ["--num-train=24", "--num-dev=6", "--num-test=6", "--num-words=80", "--vocab-size=60"]
SMALL_MODEL = (
    "--vocab-size=60 --num-buckets=2 --max-duration=12 --log-interval=1 --encoder-dim=32 "
    "--num-encoder-layers=1 --decoder-dim=16 --joiner-dim=24 --warm-step=4"
).split()


def run_script(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python file or module of this repository in a process of its own, on one thread."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=120
    )


def printed_losses(log: str) -> list[str]:
    """What the log says of each training batch, without times."""
    return re.findall(r"Epoch \d+, batch \d+, loss\[[^\]]*\]", log)


@pytest.fixture
def recipe(monkeypatch):
    """Modules of the recipe by file name, gone again afterwards: their names are common ones."""
    names = [path.stem for path in RECIPE.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(RECIPE))
    loaded = SimpleNamespace(**{name: __import__(name) for name in names})
    yield loaded
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A tiny corpus, made by the script as a user runs it."""
    folder = tmp_path_factory.mktemp("tones") / "data"
    done = run_script(RECIPE / "prepare.py", "--data-dir", folder, *SMALL_DATA)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory) -> tuple[Path, str]:
    """An experiment of two epochs, and its log."""
    exp_dir = tmp_path_factory.mktemp("exp")
    arguments = ["--data-dir", data_dir, "--exp-dir", exp_dir, "--num-epochs=2", *SMALL_MODEL]
    done = run_script(RECIPE / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    return exp_dir, done.stderr


def small_transducer(recipe, vocab_size: int = 11):
    encoder = recipe.encoder.Encoder(encoder_dim=24, num_layers=2, kernel_size=5, dropout=0.0)
    decoder = recipe.decoder.Decoder(vocab_size, decoder_dim=8)
    joiner = recipe.joiner.Joiner(24, 8, 12, vocab_size)
    return recipe.model.Transducer(encoder, decoder, joiner, vocab_size)


def test_the_same_seed_gives_the_same_audio_and_another_seed_does_not(recipe):
    import numpy as np

    def speak(seed: int):
        rng = np.random.default_rng(seed)
        speaker = recipe.speech.make_speakers("x", 1, rng)[0]
        return recipe.speech.synthesise(["bada", "fo"], speaker, rng)

    assert np.array_equal(speak(1), speak(1))
    assert len(speak(1)) != len(speak(2)) or not np.array_equal(speak(1), speak(2))
    assert speak(1).dtype == np.float32
    assert 0.1 < np.abs(speak(1)).max() <= 1.0


def test_no_two_letters_have_the_same_pattern(recipe):
    patterns = {(v.start, v.end, v.voice, v.band) for v in recipe.speech.LETTERS.values()}
    assert len(patterns) == len(recipe.speech.LETTERS)


def test_a_word_with_an_unknown_letter_is_refused(recipe):
    speaker = recipe.speech.Speaker("x", 120.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"words: got letters \['z'\]"):
        recipe.speech.synthesise(["zoo"], speaker, None)


@pytest.mark.parametrize("num_words", [0, 20001])
def test_a_lexicon_of_impossible_size_is_refused(recipe, num_words):
    with pytest.raises(ValueError, match=f"num_words: got {num_words}"):
        recipe.speech.make_lexicon(num_words, None)


def test_the_corpus_is_valid_and_no_speaker_is_in_two_splits(data_dir):
    from lhotse import load_manifest, validate

    speakers = []
    for split, count in COUNTS.items():
        cuts = load_manifest(data_dir / "fbank" / f"tones_cuts_{split}.jsonl.gz")
        validate(cuts, read_data=True)
        assert len(cuts) == count
        for cut in cuts:
            assert cut.load_features().shape == (cut.num_frames, 80)
            assert cut.supervisions[0].recording_id == cut.recording.id == cut.features.recording_id
        speakers.append({cut.supervisions[0].speaker for cut in cuts})
    assert not any(a & b for i, a in enumerate(speakers) for b in speakers[:i])


def test_the_result_does_not_depend_on_the_number_of_jobs(data_dir, tmp_path):
    done = run_script(RECIPE / "prepare.py", "--data-dir", tmp_path, "--num-jobs=2", *SMALL_DATA)
    assert done.returncode == 0, done.stderr
    for wav in (data_dir / "wav").rglob("*.wav"):
        again = tmp_path / wav.relative_to(data_dir)
        assert again.read_bytes() == wav.read_bytes()


def test_preparing_again_skips_and_another_vocabulary_keeps_the_audio(data_dir, recipe):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.wav")}
    recipe.prepare.prepare_corpus(data_dir, COUNTS, num_words=80, seed=42)
    lang_dir = recipe.prepare.prepare_lang(data_dir, 70)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.wav")} == before
    assert len((lang_dir / "bpe.vocab").read_text().splitlines()) == 70


def test_data_made_with_other_options_is_refused(data_dir, recipe):
    with pytest.raises(recipe.prepare.DataError, match=r"got data made with .*'seed': 42"):
        recipe.prepare.prepare_corpus(data_dir, COUNTS, num_words=80, seed=43)


@pytest.mark.parametrize("folder", ["wav", "manifests", "fbank", "text"])
def test_a_half_written_corpus_is_refused(tmp_path, recipe, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(recipe.prepare.DataError, match=f"{folder}: got a half-written folder"):
        recipe.prepare.prepare_corpus(tmp_path, COUNTS, num_words=80, seed=42)


def test_a_half_written_bpe_model_is_refused(data_dir, recipe):
    (data_dir / "lang_bpe_61").mkdir()
    with pytest.raises(recipe.prepare.DataError, match="lang_bpe_61: got a half-written folder"):
        recipe.prepare.prepare_lang(data_dir, 61)


@pytest.mark.parametrize("vocab_size", [5, 30000])
def test_a_vocabulary_the_text_cannot_fill_is_refused_and_leaves_nothing(
    data_dir, recipe, vocab_size
):
    with pytest.raises(recipe.prepare.DataError, match=f"vocab_size: got {vocab_size}"):
        recipe.prepare.prepare_lang(data_dir, vocab_size)
    assert not (data_dir / f"lang_bpe_{vocab_size}").exists()


def test_encoder_output_does_not_depend_on_the_padding(recipe):
    torch.manual_seed(0)
    encoder = small_transducer(recipe).encoder.double().eval()
    x = torch.randn(2, 61, 80, dtype=torch.float64)
    lens = torch.tensor([61, 34])
    together, out_lens = encoder(x, lens)
    alone, alone_lens = encoder(x[1:, :34], lens[1:])
    assert out_lens.tolist() == [14, 7]
    assert alone_lens.tolist() == [7]
    torch.testing.assert_close(together[1:, :7], alone, rtol=0, atol=1e-12)


def test_an_utterance_too_short_for_the_subsampling_is_refused(recipe):
    encoder = small_transducer(recipe).encoder
    with pytest.raises(ValueError, match="x_lens: got an utterance of 6 frames"):
        encoder(torch.zeros(1, 9, 80), torch.tensor([6]))


def test_an_even_kernel_size_is_refused(recipe):
    with pytest.raises(ValueError, match="kernel_size: got 4"):
        recipe.encoder.Encoder(kernel_size=4)


def test_decoder_sees_only_its_context(recipe):
    torch.manual_seed(0)
    decoder = recipe.decoder.Decoder(11, 8, context_size=2)
    y = torch.tensor([[0, 3, 7, 2, 9]])
    whole = decoder(y)
    torch.testing.assert_close(whole[:, 3:4], decoder(y[:, 2:4], need_pad=False))
    changed = decoder(torch.tensor([[0, 5, 7, 2, 9]]))
    assert torch.equal(whole[:, 3:], changed[:, 3:])
    assert not torch.equal(whole[:, 2], changed[:, 2])


def test_pruned_loss_with_every_symbol_kept_is_the_sum_over_all_alignments(recipe):
    torch.manual_seed(0)
    model = small_transducer(recipe).double()
    x = torch.randn(1, 19, 80, dtype=torch.float64)  # T = 4
    y, y_lens = torch.tensor([[3, 5]]), torch.tensor([2])
    _, pruned = model(x, torch.tensor([19]), y, y_lens, prune_range=3)

    frames, _ = model.encoder(x, torch.tensor([19]))
    context = model.decoder(torch.tensor([[0, 3, 5]]))
    joint = model.joiner(frames[0, :, None], context[0, None]).log_softmax(-1)  # [T, S + 1, C]
    scores = []
    # An alignment says at which frame each of the two symbols comes.
    for first, second in product(range(4), repeat=2):
        if first <= second:
            score = joint[first, 0, 3] + joint[second, 1, 5]
            for t in range(4):
                score = score + joint[t, int(t >= first) + int(t >= second), 0]
            scores.append(score)
    expected = -torch.logsumexp(torch.stack(scores), 0)
    # The recipe's losses are computed from fp32 logits.
    torch.testing.assert_close(pruned.double(), expected, rtol=2e-6, atol=0)


def test_texts_become_padded_class_ids(recipe):
    class Letters:
        def encode(self, texts, out_type):
            assert out_type is int
            return [[ord(c) - 96 for c in text] for text in texts]

    y, y_lens = recipe.tokens.encode_texts(Letters(), ["ab", "", "cda"])
    assert y.tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 1]]
    assert y_lens.tolist() == [2, 0, 3]


def test_metrics_are_summed_decayed_and_divided_by_the_frames(recipe):
    tracker = recipe.metrics.MetricsTracker
    total = tracker(loss=8.0, frames=4.0) * 0.5 + tracker(loss=2.0, frames=1.0)
    assert total == {"loss": 6.0, "frames": 3.0}
    assert str(total) == "loss=2, over 3.00 frames."


def test_learning_rate_rises_to_its_peak_and_falls_after_it(recipe):
    factors = [recipe.train.learning_rate_factor(step, 10) for step in (0, 4, 9, 39)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], (0, 0, 0)),
        ([], [], (0, 0, 0)),
        ([], [4, 4], (2, 0, 0)),
        ([1, 2], [], (0, 2, 0)),
        ([1, 2, 3, 4], [1, 9, 3, 4, 5], (1, 0, 1)),
        ([1, 2, 3, 4], [2, 3, 4], (0, 1, 0)),
    ],
)
def test_errors_are_counted_along_a_best_alignment(recipe, reference, hypothesis, expected):
    errors = recipe.decode.count_errors(reference, hypothesis)
    assert (errors.insertions, errors.deletions, errors.substitutions) == expected
    assert errors.num_tokens == len(reference)


def test_greedy_search_stops_at_the_symbol_limit_of_a_frame(recipe):
    model = small_transducer(recipe).eval()
    with torch.no_grad():
        model.joiner.output_linear.bias[5] = 1e4
    assert recipe.decode.greedy_search(model, torch.zeros(4, 24), 2) == [5] * 8
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 1e5
    assert recipe.decode.greedy_search(model, torch.zeros(4, 24), 2) == []


def test_training_twice_from_one_seed_prints_the_same_losses(data_dir, trained, tmp_path):
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL]
    again = run_script(RECIPE / "train.py", *arguments)
    losses = printed_losses(trained[1])
    assert len(losses) >= 6
    assert printed_losses(again.stderr) == losses


def test_resuming_goes_on_as_if_never_stopped(data_dir, trained, tmp_path):
    def parameters(exp_dir: Path):
        return torch.load(exp_dir / "epoch-2.pt", map_location="cpu")["model"]

    # Dropout off: its random state is not part of a checkpoint.
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--dropout=0", *SMALL_MODEL]
    whole = run_script(RECIPE / "train.py", *arguments, "--num-epochs=2")
    expected = parameters(tmp_path)
    resumed = run_script(RECIPE / "train.py", *arguments, "--num-epochs=2", "--start-epoch=2")
    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    for name, value in parameters(tmp_path).items():
        assert torch.equal(value, expected[name]), name


def test_decoding_writes_the_results_and_the_token_error_rate(data_dir, trained):
    exp_dir = trained[0]
    done = run_script(
        RECIPE / "decode.py", "--data-dir", data_dir, "--exp-dir", exp_dir, "--epoch=2"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"token error rate [\d.]+% \[\d+ / \d+, ", done.stderr)
    (recogs,) = (exp_dir / "greedy_search").glob("recogs-test-*.txt")
    lines = recogs.read_text().splitlines()
    transcripts = (data_dir / "text" / "transcripts_test.txt").read_text().splitlines()
    assert sorted(line[4:] for line in lines[::2]) == sorted(transcripts)
    assert all(line.startswith("hyp=") for line in lines[1::2])


def test_the_panda_flag_changes_no_printed_loss(data_dir, trained, tmp_path):
    done = run_script(
        *["-m", "panda_icefall", "run", RECIPE / "train.py", "--data-dir", data_dir],
        *["--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL, "--use-panda", "1"],
    )
    assert done.returncode == 0, done.stderr
    number = r"(\w+)=([\d.e+-]+)"
    dense = [re.findall(number, line) for line in printed_losses(trained[1])]
    routed = [re.findall(number, line) for line in printed_losses(done.stderr)]
    assert len(dense) == len(routed) > 0
    for expected, got in zip(dense, routed):
        assert [name for name, _ in got] == [name for name, _ in expected]
        # Four digits are printed; the last may round the other way.
        assert [float(v) for _, v in got] == pytest.approx(
            [float(v) for _, v in expected], rel=2e-3
        )


def test_the_tutorial_runs_as_it_is_written(data_dir, tmp_path):
    """Its commands that train, and its report, with this recipe for AISHELL's."""
    text = (REPO / "egs/TUTORIAL.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^panda-icefall (check|run|report) (.*)$", text, flags=re.M)
    assert [verb for verb, _ in lines] == ["check", "run", "run", "report"]
    size = ["--data-dir", data_dir, "--num-epochs=1", *SMALL_MODEL]
    said = []
    for verb, rest in lines:
        words = [
            word.replace("zipformer/exp", f"{tmp_path}/exp")
            for word in rest.replace("zipformer/check", f"{tmp_path}/check").split()
        ]
        if verb == "report":
            words[-1] = str(tmp_path / "report")
        else:
            words[0] = str(RECIPE / "train.py")
            at = words.index("--max-duration")
            words[at : at + 2] = map(str, size)
        done = run_script("-m", "panda_icefall", verb, *words)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    checked, routed, dense, _ = said
    assert "The contract holds" in checked
    assert re.search(r"losses routed / dense\W+\d+ / 0\b", routed)
    assert re.search(r"materialised\W+0\b", routed)
    assert "OFF" in dense
    assert "added by the losses of a step" in dense
    assert len(printed_losses(dense)) == len(printed_losses(routed)) > 0
    assert (tmp_path / "report" / "report.html").is_file()


def test_autocast_trains_to_about_the_same_losses(data_dir, trained, tmp_path):
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL]
    done = run_script(RECIPE / "train.py", *arguments, "--use-fp16=1")
    assert done.returncode == 0, done.stderr
    pattern = r"validation: loss=([\d.]+)"
    exact, half = (
        [float(v) for v in re.findall(pattern, log)] for log in (trained[1], done.stderr)
    )
    # bf16 keeps eight bits: a percent after two epochs is what rounding may do.
    assert half == pytest.approx(exact, rel=1e-2)
    assert printed_losses(done.stderr) != printed_losses(trained[1])


def test_two_processes_train_routed_and_report_once_however_they_are_started(data_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    panda = ["-m", "panda_icefall", "run", RECIPE / "train.py", "--data-dir", data_dir]
    panda += ["--num-epochs=1", *SMALL_MODEL, "--use-panda", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said = []
    for name, words in {
        "spawned": [*panda, "--world-size=2", f"--master-port={port}"],
        "torchrun": [*torchrun, *panda],
    }.items():
        done = run_script(*words, "--exp-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        validation = re.findall(r"\((\d)/2\) Epoch 1, validation: (.*)", done.stderr)
        assert sorted(rank for rank, _ in validation) == ["0", "1"]
        assert validation[0][1] == validation[1][1]
        assert (tmp_path / name / "epoch-1.pt").is_file()
        # One report, in which both ranks routed all of their losses.
        assert done.stderr.count("PANDA summary") == 1
        (counted,) = re.findall(r"(?<!CTC )losses routed / dense\W+(\d+) / (\d+)", done.stderr)
        (batches,) = re.findall(r"training batches per rank\W+(\d+, \d+)", done.stderr)
        said.append((validation[0][1], counted, batches))
        assert int(counted[0]) > sum(map(int, batches.split(", "))) > 2
        assert counted[1] == "0"
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir={none}"], "vocab_size: got 60, expected a finished"),
        (["--data-dir={data}", "--vocab-size=77"], "vocab_size: got 77, expected a finished"),
        (["--data-dir={data}", "--start-epoch=4"], "checkpoint: got .*epoch-3.pt, expected"),
        (["--data-dir={data}", "--world-size=0"], "--world-size: got 0, expected at least 1"),
        (["--data-dir={data}", "--use-fp16=maybe"], "got 'maybe', expected 0 or 1"),
    ],
)
def test_wrong_arguments_stop_training_with_a_clear_message(
    data_dir, recipe, tmp_path, monkeypatch, capsys, arguments, message
):
    filled = [a.format(none=tmp_path / "none", data=data_dir) for a in arguments]
    monkeypatch.setattr(recipe.train, "setup_logger", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--exp-dir={tmp_path}", *SMALL_MODEL, *filled])
    with pytest.raises((SystemExit, FileNotFoundError)) as caught:
        recipe.train.main()
    assert getattr(caught.value, "code", 1) != 0
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")


def test_data_without_its_marker_is_not_trained_on(data_dir, recipe, tmp_path):
    module = recipe.asr_datamodule.TonesAsrDataModule(SimpleNamespace(data_dir=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"data_dir: got .* run prepare.py"):
        module.cuts("train")


def test_an_unknown_parameter_is_named_with_those_that_exist(recipe):
    params = recipe.params.AttributeDict(seed=1)
    assert params.seed == 1
    with pytest.raises(AttributeError, match="got no 'sed', expected one of"):
        params.sed  # noqa: B018


def test_the_marker_holds_the_options(data_dir):
    marker = json.loads((data_dir / ".corpus_complete.json").read_text())
    assert marker["num_train"] == 24
    assert marker["num_words"] == 80


@pytest.mark.parametrize("has_gpus", [True, False])
def test_each_rank_trains_on_a_gpu_of_its_own(recipe, monkeypatch, has_gpus):
    current = []
    monkeypatch.setattr(recipe.process.torch.cuda, "is_available", lambda: has_gpus)
    monkeypatch.setattr(recipe.process.torch.cuda, "set_device", current.append)
    device = recipe.process.training_device(3)
    assert str(device) == ("cuda:3" if has_gpus else "cpu")
    assert current == ([device] if has_gpus else [])

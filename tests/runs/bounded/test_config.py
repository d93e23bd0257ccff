"""A bounded run's configuration is read strictly, and its mistakes are named by key."""

import copy

import pytest
import yaml

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded.config import load_config

GOOD = {
    "recipe": "egs/aishell/ASR/zipformer/train.py",
    "train_args": {"world-size": 1, "num-heads": "2,2", "use-fp16": False, "base-lr": 0.045},
    "data": {"corpus": "aishell", "lang": "char", "vocab_size": 4336},
    "bounds": {"max_batches": 30, "max_minutes": 4},
    "contract": {"batches": 3, "tolerances": {"loss_rel": 1e-6}},
}


@pytest.fixture
def write(tmp_path):
    """A configuration file: GOOD with one key set (``"bounds.max_batches", 3``) or as given."""

    def write(key=None, value=None, text=None):
        content = copy.deepcopy(GOOD)
        if key is not None:
            *parents, last = key.split("/")
            place = content
            for parent in parents:
                place = place[parent]
            if value is None:
                del place[last]
            else:
                place[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False) if text is None else text)
        return path

    return write


def test_values_and_defaults(write):
    config = load_config(write())
    assert config.bounds.stop_after == 15
    assert config.contract.update_steps is None
    assert config.memory.workspace_mib is None
    assert config.data.synthetic.seed == 42
    assert config.recipe_arguments() == (
        "--world-size 1 --num-heads 2,2 --use-fp16 0 --base-lr 0.045".split()
    )


def test_fp16_is_seen_in_every_spelling_of_icefalls_parsers(write):
    assert not load_config(write()).uses_fp16
    for value in (True, 1, "yes"):
        assert load_config(write("train_args/use-fp16", value)).uses_fp16
    text = yaml.safe_dump(GOOD).replace("use-fp16: false", "use_fp16: 'True'")
    assert load_config(write(text=text)).uses_fp16


def test_one_process_or_more(write):
    assert load_config(write()).has_one_process
    assert load_config(write("train_args", {})).has_one_process
    assert not load_config(write("train_args/world-size", 2)).has_one_process


def test_a_number_without_a_dot_is_a_number(write):
    text = yaml.safe_dump(GOOD).replace("1.0e-06", "1e-6")
    assert "loss_rel: 1e-6" in text
    assert load_config(write(text=text)).contract.tolerances == {"loss_rel": 1e-6}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bouds", {}, "bouds: unknown key.*did you mean bounds"),
        ("bounds/max_batchs", 3, r"bounds\.max_batchs: unknown key.*did you mean max_batches"),
        ("recipe", None, "recipe: missing"),
        ("data/vocab_size", None, r"data\.vocab_size: missing"),
        ("recipe", 3, "recipe: got 3"),
        ("data/corpus", "timit", r"data\.corpus: got 'timit'.*'aishell', 'wenetspeech'"),
        ("data/vocab_size", "many", r"data\.vocab_size: got 'many'"),
        ("data/vocab_size", 1, r"data\.vocab_size: got 1: .*greater than or equal to 2"),
        ("bounds/max_batches", 1, r"bounds\.max_batches: got 1"),
        ("bounds/max_batches", True, r"bounds\.max_batches: got True"),
        ("bounds/max_batches", 2.5, r"bounds\.max_batches: got 2\.5"),
        ("bounds/max_minutes", 0, r"bounds\.max_minutes: got 0"),
        ("bounds/max_minutes", float("inf"), r"bounds\.max_minutes: got inf"),
        ("bounds/resume_after", 30, r"bounds\.resume_after: got 30, expected less than .*\(30\)"),
        ("contract/batches", 0, r"contract\.batches: got 0"),
        ("contract/update_steps", 0, r"contract\.update_steps: got 0"),
        ("contract/update_steps", True, r"contract\.update_steps: got True"),
        (
            "contract/tolerances/loss",
            1e-6,
            r"contract\.tolerances\.loss: .*expected one of loss_rel",
        ),
        ("contract/tolerances/loss_rel", -1, r"contract\.tolerances\.loss_rel: got -1"),
        ("contract/tolerances/loss_rel", "tiny", r"contract\.tolerances\.loss_rel: got 'tiny'"),
        ("memory", {"workspace_mib": 0}, r"memory\.workspace_mib: got 0"),
        ("projections", {}, r"projections: got {}: expected am: NAME, lm: NAME, ctc: NAME or"),
        ("projections", {"an": "proj"}, r"projections: got {'an': 'proj'}: expected am: NAME"),
        ("projections", {"am": 3}, r"projections\.am: got 3"),
        ("train_args", ["--world-size"], "train_args: got "),
        ("train_args/num-heads", [2, 2], r"train_args\.num-heads: got \[2, 2\].*a text, a number"),
        ("train_args/--seed", 1, "train_args.--seed: .*without its dashes: seed"),
        ("train_args/exp-dir", "exp", r"train_args\.exp-dir: .*sets exp-dir itself, from --out"),
        ("train_args/start_batch", 3, r"train_args\.start_batch: .*sets start-batch itself"),
        ("train_args/exp-d", "x", r"train_args\.exp-d: .*sets exp-dir itself"),
        ("train_args/a b", 1, r"train_args\.a b: .*expected the name of an option"),
        ("train_args/exp-dir=x", 1, r"train_args\.exp-dir=x: .*expected the name of an option"),
        ("train_args/use_fp16", 1, r"train_args\.use-fp16: given in two spellings"),
        ("data/synthetic", {"seed": -1}, r"data\.synthetic\.seed: got -1"),
        ("train_args/use-panda", 1, r"train_args\.use-panda: .*follow from the configuration"),
    ],
)
def test_a_mistake_is_named_by_its_key(write, key, value, message):
    with pytest.raises(UsageError, match=message):
        load_config(write(key, value))


def test_every_mistake_is_told_at_once(write):
    with pytest.raises(UsageError, match=r"recipe: got 3.*bounds\.max_minutes: got"):
        load_config(write(text=yaml.safe_dump({**GOOD, "recipe": 3, "bounds": {
            "max_batches": 3, "max_minutes": -1}})))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the whole file: got None"),
        ("- a\n- b\n", "the whole file: got "),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("recipe: a\nrecipe: b\n", "the key 'recipe' is given twice"),
        ("? [a, b]\n: c\n", "a key is not plain text"),
    ],
)
def test_a_file_that_is_no_configuration(write, text, message):
    with pytest.raises(UsageError, match=message):
        load_config(write(text=text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"CONFIG: cannot read .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")

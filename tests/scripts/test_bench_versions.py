"""Two checkouts against each other: here this one against itself."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = "--B 3 --T 12 --S 4 --C 40 --H 8 --D 8 --repeats 2".split()


@pytest.mark.slow
def test_a_checkout_differs_in_nothing_from_itself(script, checked):
    rows = checked(script("bench_versions", ROOT, *TINY, "--parts", "pruned"), "versions")
    assert [(row["part"], row["version"]) for row in rows] == [
        ("pruned", "before"),
        ("pruned", "now"),
    ]
    for row in rows:
        assert len(row["samples_s"]) == 2
        assert row["seconds_min"] > 0
    assert (rows[1]["loss_rel"], rows[1]["worst_grad_rel_l2"]) == (0, 0)


def test_a_gradient_that_changed_is_seen():
    import torch
    from bench_versions import distance

    before = {"loss": torch.tensor(2.0), "head": torch.ones(4)}
    now = {"loss": torch.tensor(2.5), "head": torch.ones(4) * 1.5}
    assert distance(now, before) == {"loss_rel": 0.25, "worst_grad_rel_l2": 0.5}
    with pytest.raises(SystemExit, match="gradients of"):
        distance({"loss": torch.tensor(2.0)}, {"loss": torch.tensor(2.0), "head": torch.ones(4)})


def test_a_folder_that_is_no_checkout_is_refused(script, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        script("bench_versions", tmp_path, *TINY)
    assert ended.value.code == 2
    assert "expected the root of a checkout" in capsys.readouterr().err

"""`run --json` and `check --json`: the summary for a program, as the last line of stdout."""

import json


def test_a_run_prints_its_summary_as_json_where_it_is_asked_to(recipe):
    words = ["run", "--json", "train.py", "--use-panda", "1", "--panda-max-batches", "2"]
    done = recipe.subprocess(*words)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    assert content["contract"] is None
    (process,) = content["processes"]
    assert (process["rank"], process["batches"]) == (0, 2)
    assert process["counters"]["losses_routed"] == 4  # two to train on, two to validate
    assert "PANDA summary" in done.stderr


def test_a_check_prints_its_contract_as_json_where_it_is_asked_to(recipe):
    done = recipe.subprocess("check", "--updates", "1", "--json", "train.py")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    assert len(content["contract"]["batches"]) == 1
    assert content["processes"][0]["violations"] == []

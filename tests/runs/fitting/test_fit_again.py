"""A fit in the folder of an earlier one: what is taken over, left alone and removed."""

import pytest

from panda_icefall.runs.fitting import fit
from panda_icefall.runs.fitting.folder import trial_folder
from panda_icefall.runs.fitting.record import Trial
from panda_icefall.runs.fitting.search import Search


def test_what_was_measured_survives_an_interruption_and_is_taken_over(fitted):
    fitted.outcomes["routed", 100] = "interrupted"
    status, report, text, _ = fitted()
    assert status == 130
    assert (report["state"], report["reason"]) == ("partial", "interrupted by SIGINT")
    of_dense = list(fitted.tried)[:-1]
    assert [(t["arm"], t["max_duration"]) for t in report["trials"]] == of_dense
    assert report["arms"]["dense"]["fits"] > 120
    assert "PARTIAL: interrupted by SIGINT" in text
    assert "go on with it: the same command with --out " in text
    # Interrupted again before anything is tried, it forgets nothing.
    assert fitted()[1]["trials"] == report["trials"]
    fitted.outcomes.clear()
    status, report, _, _ = fitted()
    assert (status, report["state"]) == (0, "complete")
    assert {arm for arm, _ in fitted.tried} == {"routed"}
    assert [t["arm"] for t in report["trials"]][: len(of_dense)] == ["dense"] * len(of_dense)


def test_what_was_tried_and_is_not_needed_now_is_kept(fitted):
    first = fitted()[1]["trials"]
    status, report, _, _ = fitted(arguments=("--max-duration", "100", "--use-panda", "1"))
    assert (status, list(report["arms"])) == (0, ["routed"])
    assert fitted.tried == []
    assert sorted(map(str, report["trials"])) == sorted(map(str, first))


def test_a_folder_is_continued_with_the_same_arguments_only(fitted):
    assert fitted()[0] == 0
    status, _, _, error = fitted(arguments=("--max-duration", "100", "--lr", "2"))
    assert status == 2
    assert "a fit with other ARGS; expected the same to go on with it" in error
    status, _, _, error = fitted(options=("--device", "cpu", "--limit-mib", "201"))
    assert status == 2
    assert "a fit with other --limit-mib" in error
    # The first duration and the tolerance say where to look, not what is found there.
    assert fitted("--tolerance", "0.02", arguments=("--max-duration", "120"))[0] == 0


def test_a_folder_with_something_else_is_left_alone(fitted, tmp_path):
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "thesis.tex").write_text("")
    status, report, _, error = fitted()
    assert (status, report) == (2, None)
    assert "exists and is not empty, expected a new folder or that of a fit" in error


def test_another_start_begins_within_the_bounds_that_are_known(fitted):
    known = fitted()[1]["arms"]
    status, report, text, error = fitted(arguments=("--max-duration", "400"))
    assert (status, report["arms"], fitted.tried) == (0, known, [])
    dense = known["dense"]
    assert f"dense: {dense['fits']} fits, {dense['too_long']} does not (" in error
    assert f"set: --use-panda 1 --max-duration {known['routed']['fits']}" in text
    status, report, _, _ = fitted("--tolerance", "0.001", arguments=("--max-duration", "30"))
    assert status == 0
    assert fitted.tried
    for arm, seconds in fitted.tried:
        assert known[arm]["fits"] < seconds < known[arm]["too_long"]
    assert report["arms"]["dense"]["fits"] == 130
    assert report["arms"]["routed"]["fits"] == 700


def test_a_start_within_the_known_bounds_is_the_first_that_is_tried(fitted):
    fitted("--max-trials", "2", arguments=("--max-duration", "64"))
    bounds = fitted()[1]["arms"]["routed"]
    arguments = ("--use-panda", "1", "--max-duration", str(bounds["fits"] + 1))
    fitted("--tolerance", "0.001", arguments=arguments)
    assert fitted.tried[0] == ("routed", bounds["fits"] + 1)


def test_trials_of_an_earlier_fit_are_not_counted(fitted):
    first = fitted("--max-trials", "1", arguments=("--max-duration", "8"))[1]["trials"]
    report = fitted("--max-trials", "1", arguments=("--max-duration", "8"))[1]
    assert [arm for arm, _ in fitted.tried] == ["dense", "routed"]
    assert report["trials"][: len(first)] == first
    assert len(report["trials"]) == len(first) + 2


@pytest.mark.parametrize(
    ("outcomes", "fits", "too_long"),
    [
        ({100: "fits"}, 100, None),
        ({100: "fits", 120: "out of memory"}, 100, 120),
        ({100: "fits", 120: "no batch", 150: "out of memory"}, 100, 120),
        # They contradict each other: the smaller one is believed.
        ({50: "fits", 100: "fits", 90: "out of memory"}, 50, 90),
        ({90: "out of memory", 100: "fits"}, 0, 90),
    ],
)
def test_the_bounds_of_earlier_trials(outcomes, fits, too_long):
    known = [
        Trial(arm="dense", max_duration=n, outcome=outcome, seconds=1.0, exit_status=0, log="")
        for n, outcome in outcomes.items()
    ]
    search = Search(200, 20_000, 8, 0.05)
    fit._take_over(search, known)
    assert (search.fits, search.too_long, search.trials) == (fits, too_long, 0)
    assert search.lacks_data is ("no batch" in outcomes.values() or too_long is None)


def test_a_folder_in_which_nothing_was_measured_is_as_good_as_a_new_one(fitted, tmp_path):
    fitted.outcomes["dense", 100] = "failed"
    assert fitted(out=None)[0] == 1
    log = trial_folder(tmp_path / "panda-fit", "dense", 100) / "output.log"
    assert log.is_file()  # to be read
    fitted.outcomes.clear()
    arguments = ("--max-duration", "80", "--lr", "2")
    status, report, _, _ = fitted(out=None, arguments=arguments)
    assert (status, report["inputs"]["ARGS"]) == (0, ["--lr", "2"])
    assert "failed" not in [trial["outcome"] for trial in report["trials"]]
    assert not log.exists()
    assert not (tmp_path / "panda-fit-2").exists()
    # Now something was: another fit goes elsewhere.
    assert fitted(out=None)[0] == 0
    assert (tmp_path / "panda-fit-2/fit.json").is_file()


def test_the_folder_of_a_fit_that_is_running_is_not_taken(fitted, tmp_path):
    fitted.outcomes["dense", 100] = "failed"
    assert fitted(out=None)[0] == 1
    path = tmp_path / "panda-fit/fit.json"
    path.write_text(path.read_text().replace('"state": "partial"', '"state": "running"'))
    fitted(out=None)
    assert (tmp_path / "panda-fit-2/fit.json").is_file()


def test_what_was_not_measured_is_removed_when_the_fit_goes_on(fitted, tmp_path):
    fitted.outcomes["routed", 100] = "interrupted"
    assert fitted()[0] == 130
    interrupted = trial_folder(tmp_path / "fit", "routed", 100)
    measured = trial_folder(tmp_path / "fit", "dense", 100)
    assert interrupted.is_dir()
    fitted(arguments=("--use-panda", "0"))
    assert not interrupted.exists()
    assert measured.is_dir()


def test_what_the_system_killed_is_no_free_folder(fitted, tmp_path):
    fitted.outcomes["dense", 100] = "killed"
    fitted("--max-trials", "1", arguments=("--use-panda", "0", "--max-duration", "100"), out=None)
    log = trial_folder(tmp_path / "panda-fit", "dense", 100) / "output.log"
    assert log.is_file()
    fitted.outcomes.clear()
    assert fitted(out=None, arguments=("--max-duration", "80", "--lr", "2"))[0] == 0
    assert log.is_file()
    assert (tmp_path / "panda-fit-2/fit.json").is_file()
    status, _, _, error = fitted(out="panda-fit", arguments=("--max-duration", "80", "--lr", "2"))
    assert (status, "a fit with other ARGS" in error) == (2, True)


def test_only_folders_of_trials_are_removed(fitted, tmp_path):
    fitted.outcomes["dense", 100] = "failed"
    fitted()
    mine = tmp_path / "fit/trials/mine"
    mine.mkdir()
    fitted()
    assert mine.is_dir()


def test_the_bounds_of_an_arm_outlive_the_failure_of_another(fitted):
    known = fitted()[1]["arms"]
    fitted.outcomes.update({("dense", n): "failed" for n in range(1, 200)})
    arguments = ("--max-duration", "100")
    status, report, text, _ = fitted("--tolerance", "0.0001", arguments=arguments)
    assert (status, report["arms"]["routed"]["fits"]) == (1, known["routed"]["fits"])
    assert f"set: --use-panda 1 --max-duration {known['routed']['fits']}" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"trials": 3}', '{"arms": {}}'])
def test_a_report_that_is_none_of_a_fit_is_left_alone(command, recipe, content):
    path = recipe.folder / "fit/fit.json"
    path.parent.mkdir()
    path.write_text(content)
    options = ("--device", "cpu", "--limit-mib", "200", "--out", path.parent)
    status, _, error = command("fit", *options, recipe.train_py)
    assert status == 2
    assert "expected a new folder or that of a fit" in error
    assert path.read_text() == content

"""A bounded run whose report cannot be written goes on, and says so."""

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded import run as bounded_run
from panda_icefall.runs.bounded.request import check_request


def test_a_full_disk_under_the_report_hides_no_other_error(checkout, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def fail(*_):
        raise RuntimeError("the vocabulary could not be made")

    monkeypatch.setattr(bounded_run, "write_report", full)
    monkeypatch.setattr(bounded_run, "synth_data", fail)
    arguments = {"synthetic": True, "device": "cpu", "out": checkout.out}
    request = check_request(checkout.config, checkout.root, **arguments)
    with pytest.raises(UsageError, match="the vocabulary could not be made"):
        bounded_run.run_bounded(request)
    said = capfd.readouterr().err
    assert "the report could not be written: [Errno 28] No space left on device" in said
    assert not (checkout.out / "report.json").exists()

"""The command for the day there is a GPU: every section in its CPU form, and how it ends."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import validate_gpu
from gpu_validation.sections import SECTIONS, WHOLE_SECONDS, Section

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts/validate_gpu.py"


@pytest.fixture
def said(monkeypatch):
    """What a section's process that is a program of Python comes to."""

    def run(program, seconds=30, seconds_left=1000, grace=0.5):
        words = [sys.executable, "-c"]
        monkeypatch.setattr(
            validate_gpu, "command", lambda section, events, *_: [*words, program, str(events)]
        )
        monkeypatch.setattr(validate_gpu, "GRACE_SECONDS", grace)
        monkeypatch.setattr(validate_gpu, "PATIENCE", {"cpu": 1})
        found = validate_gpu.empty()
        validate_gpu.run_section(Section("probes", seconds), "cpu", seconds_left, found)
        return found

    return run


SAYS = 'import sys; print(\'{"kind": "fact", "name": "a", "value": 1}\\n{"ki\', '
SAYS += "file=open(sys.argv[1], 'w'), flush=True); "


@pytest.mark.slow
def test_the_dry_run_runs_every_section(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run", "--out", str(tmp_path)],
        env={**env, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1500, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    (path,) = tmp_path.glob("gpu-dry-run-*.json")
    document = json.loads(path.read_text())
    sections = document["sections"]
    assert list(sections) == list(SECTIONS)
    for name, section in sections.items():
        assert section["status"] == "done", name
        assert section["cut"] == [], name
        assert section["checks"] or section["tables"], name
        assert all(check["is_ok"] for check in section["checks"]), name
    assert {"methods", "workspaces"} <= set(sections["bench"]["tables"])
    assert {"steps", "kernels"} <= set(sections["audit"]["tables"])
    assert {"products", "roundings", "launches", "bandwidth"} == set(sections["probes"]["tables"])
    assert sections["tests"]["tables"]["tests"][0]["passed"] > 0
    text = path.with_suffix(".md").read_text()
    assert text in done.stdout
    assert "of the roofline" in text
    for machine_path in (str(REPO), str(Path.home()), str(tmp_path)):
        assert machine_path not in path.read_text() + text


def test_without_cuda_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(validate_gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["validate_gpu.py"])
    with pytest.raises(SystemExit) as caught:
        validate_gpu.main()
    assert caught.value.code == 2
    assert (
        "torch finds no CUDA device here, expected one; give --dry-run" in capsys.readouterr().err
    )


def test_it_needs_torch_and_the_checkout_alone():
    program = (
        "import sys; sys.modules.update(dict.fromkeys("
        "('rich', 'pydantic', 'click', 'yaml', 'numpy', 'pytest', 'triton', 'k2', 'matplotlib')));"
        "import validate_gpu; from gpu_validation import sections;"
        "[__import__(f'gpu_validation.{name}') for name in sections.SECTIONS]"
    )
    env = validate_gpu.environment("cpu")
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


def test_all_sections_fit_into_ten_minutes():
    assert sum(section.seconds for section in SECTIONS.values()) <= WHOLE_SECONDS < 600


def test_a_section_that_hangs_is_stopped_and_what_it_said_is_kept(said):
    found = said(SAYS + "import time; time.sleep(60)", seconds=1.5)
    assert found["status"] == "stopped"
    assert found["facts"] == {"a": 1}
    assert found["seconds"] < 20
    lines = {
        checks: validate_gpu.failed(Section("x", 1, checks), {"sections": {"x": found}})
        for checks in (True, False)
    }
    assert lines[True] == ["x: no time left: what it was at when its time was over"]
    assert lines[False] == []


def test_children_of_a_section_are_stopped_with_it(said, tmp_path):
    late = tmp_path / "late"
    child = f"import time; time.sleep(3); open({str(late)!r}, 'w')"
    said(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", seconds=1)
    time.sleep(3)
    assert not late.exists()


def test_a_section_that_crashes_is_a_failure_with_its_last_words(said):
    found = said(SAYS + f"raise KeyError('{REPO}/scripts')")
    assert found["status"] == "exit status 1"
    assert found["facts"] == {"a": 1}
    (check,) = found["checks"]
    assert "KeyError: './scripts'" in check["error"]
    assert validate_gpu.failed(Section("x", 1, False), {"sections": {"x": found}})


def test_a_section_for_which_no_time_is_left_is_not_begun(said):
    found = said("raise SystemExit(3)", seconds_left=0.2)
    assert found["status"] == "no time left"
    assert found["cut"] == ["the whole section"]


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_the_file_is_there_after_each_section(monkeypatch, tmp_path, capsys, is_interrupted):
    files = []

    def run_section(section, device, seconds_left, found):
        files.append([json.loads(p.read_text()) for p in tmp_path.glob("*.json")])
        found["facts"]["a"] = section.name
        if section.name == "probes" and is_interrupted:
            raise KeyboardInterrupt
        found["status"] = "done"
        found["checks"].append({"name": "it holds", "is_ok": section.name != "op", "got": 7})

    monkeypatch.setattr(validate_gpu, "run_section", run_section)
    words = ["--dry-run", "--out", str(tmp_path), "--only", "environment", "probes", "op"]
    monkeypatch.setattr(sys, "argv", ["validate_gpu.py", *words])
    with pytest.raises(KeyboardInterrupt if is_interrupted else SystemExit) as caught:
        validate_gpu.main()
    (path,) = tmp_path.glob("*.json")
    sections = json.loads(path.read_text())["sections"]
    assert sections["probes"]["facts"] == {"a": "probes"}
    assert [len(found) for found in files[:2]] == [0, 1]
    assert "environment" in files[1][0]["sections"]
    assert "## probes" in path.with_suffix(".md").read_text()
    if is_interrupted:
        assert sections["probes"]["status"] == "interrupted"
    else:
        assert str(caught.value) == "failed:\nop: it holds"
        assert "**failed**: it holds: got: 7" in capsys.readouterr().out


def test_other_sections_stay_in_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(validate_gpu, "run_section", lambda *given: None)
    for only in ("environment", "probes"):
        words = ["--dry-run", "--out", str(tmp_path), "--only", only]
        monkeypatch.setattr(sys, "argv", ["validate_gpu.py", *words])
        validate_gpu.main()
    (path,) = tmp_path.glob("*.json")
    assert {"environment", "probes"} == set(json.loads(path.read_text())["sections"])


def test_the_interpreter_is_for_the_dry_run_alone(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert validate_gpu.environment("cpu")["TRITON_INTERPRET"] == "1"
    on_cuda = validate_gpu.environment("cuda")
    assert "TRITON_INTERPRET" not in on_cuda
    assert on_cuda["PYTHONPATH"].split(os.pathsep)[:2] == [str(REPO / "scripts"), str(REPO)]

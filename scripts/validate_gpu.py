"""Everything that is to be known of a GPU: whether PANDA is right on it, and how fast. One command.

    python scripts/validate_gpu.py                   # under ten minutes on one GPU
    python scripts/validate_gpu.py --only op bench   # some sections; others stay in the file
    python scripts/validate_gpu.py --dry-run         # without a GPU: tiny sizes, nothing measured

Needs this checkout and a torch with CUDA; no installation, and no network. Triton, k2, numpy and
pytest are used where they are there, and named where they are not.

Each section is a process with a time of its own (gpu_validation/sections.py). What it leaves out
for want of time is said; that is a failure where it left out checks. After each one the figures
are written to scripts/results/gpu-<name>-<torch>.json, at the end as Markdown beside it. The exit
status is 1 where anything failed, 2 where there is no GPU and no --dry-run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from gpu_validation.sections import GRACE_SECONDS, PATIENCE, SECTIONS, WHOLE_SECONDS, Section
from gpu_validation.tables import markdown

SCRIPTS = Path(__file__).resolve().parent
NOTES = {
    "cuda": "Medians of CUDA events after warm-ups. The roofline is the step's matrix products at "
    "the fastest rate that the probes saw, or their operands at the bandwidth.",
    "cpu": "A dry run without a GPU: tiny sizes, and no figure means anything.",
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--dry-run", action="store_true", help="every section in its CPU form")
    p.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections; all if not given")
    p.add_argument("--out", type=Path, help="folder; scripts/results/, in a dry run a new one")
    args = p.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        p.error("torch finds no CUDA device here, expected one; give --dry-run for the CPU form")
    if args.out is None:
        args.out = Path(tempfile.mkdtemp()) if args.dry_run else SCRIPTS / "results"
    return args


def main() -> None:
    args = parse()
    device = "cpu" if args.dry_run else "cuda"
    end = time.monotonic() + WHOLE_SECONDS * PATIENCE[device]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu-{name_of(device)}-{torch.__version__.split('+')[0]}.json"
    document = begin(path, device, is_continued=bool(args.only))
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = [section for name, section in SECTIONS.items() if name in (args.only or SECTIONS)]
    try:
        for section in chosen:
            done = document["sections"][section.name] = empty()
            try:
                run_section(section, device, end - time.monotonic(), done)
            finally:  # what an interrupted section has said is kept
                write(path, json.dumps(document, indent=1))
            print(f"{section.name}: {done['status']}, {done['seconds']} s", flush=True)
    finally:
        text = markdown(document)
        write(path.with_suffix(".md"), text)
        print(f"\n{text}\nfigures: {path}")
    failures = [line for section in chosen for line in failed(section, document)]
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))


def name_of(device: str) -> str:
    """The GPU as a part of a file's name."""
    if device == "cpu":
        return "dry-run"
    # Of a process of its own: a CUDA context here would hold memory beside the sections'.
    program = "import torch; print(torch.cuda.get_device_name(0))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return re.sub("[^a-z0-9]+", "-", done.stdout.strip().lower()).strip("-")


def begin(path: Path, device: str, is_continued: bool) -> dict[str, Any]:
    """The document: a new one, or that of the file where only some sections run."""
    if is_continued and path.is_file():
        return json.loads(path.read_text())
    return {
        "title": f"{path.stem}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "note": NOTES[device],
        "device": device,
        "sections": {},
    }


def empty() -> dict[str, Any]:
    """A section that has said nothing."""
    lists: dict[str, Any] = {name: [] for name in ("checks", "skipped", "cut")}
    return {"status": "interrupted", "seconds": 0.0, "facts": {}, **lists, "tables": {}}


def run_section(section: Section, device: str, seconds_left: float, found: dict[str, Any]) -> None:
    """Run a section's process; put all that it says into `found`, however it ends."""
    begin, wanted = time.monotonic(), section.seconds * PATIENCE[device]
    seconds = min(wanted, seconds_left - GRACE_SECONDS)
    if seconds <= 0:
        found["status"] = "no time left"
        found["cut"].append("the whole section")
        return
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        log = (Path(folder) / "log").open("w+")
        process = subprocess.Popen(
            command(section, events, device, seconds),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(device),
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds + GRACE_SECONDS)
            found["status"] = "done" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            found["status"] = "stopped"
            found["cut"].append("what it was at when its time was over")
        finally:
            # Its children too.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.seek(0)
            read_events(events, found)
        if found["status"].startswith("exit"):
            error = log.read()[-3000:].replace(str(SCRIPTS.parent), ".")
            found["checks"].append({"name": "ends by itself", "is_ok": False, "error": error})
        log.close()
    found["seconds"] = round(time.monotonic() - begin, 1)


def command(section: Section, events: Path, device: str, seconds: float) -> list[str]:
    """A section's process, which writes to `events`."""
    child = [sys.executable, "-m", "gpu_validation.child"]
    return [*child, section.name, str(events), device, str(seconds)]


def environment(device: str) -> dict[str, str]:
    """Of a section: this checkout first, with its gates, and on a CPU Triton's interpreter."""
    repo = SCRIPTS.parent
    here = [str(folder) for folder in (SCRIPTS, repo, repo / "tests/support")]
    folders = [*here, os.environ.get("PYTHONPATH", "")]
    interpreter = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), **interpreter}


def read_events(path: Path, found: dict[str, Any]) -> None:
    """Put what a section wrote line by line where it belongs; the last line may be half a one."""
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        kind = event.pop("kind")
        if kind == "fact":
            found["facts"][event["name"]] = event["value"]
        elif kind == "row":
            found["tables"].setdefault(event["table"], []).append(event["cells"])
        elif kind == "cut":
            found["cut"].append(event["name"])
        else:
            found["checks" if kind == "check" else kind].append(event)


def failed(section: Section, document: dict[str, Any]) -> list[str]:
    """A line for everything of a section that is a failure."""
    done = document["sections"][section.name]
    lines = [check["name"] for check in done["checks"] if not check["is_ok"]]
    lines += [f"no time left: {cut}" for cut in done["cut"]] if section.checks else []
    return [f"{section.name}: {line}" for line in lines]


def write(path: Path, text: str) -> None:
    """The whole file at once: a reader, or an end of this process, never meets half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""The files of a bounded run's report, read back: complete, self-contained, honest when partial."""

import base64
import builtins
import json
import math
import re
from html.parser import HTMLParser

import bounded_content as made
import pytest

from panda_icefall.runs.report.bounded import write_report
from panda_icefall.runs.report.page import as_page
from panda_icefall.runs.run_record import RunRecord

FIGURES = {"loss.png", "memory.png", "phases.png", "contract.png"}
VOID = {"meta", "img", "br", "link", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a reader sees and what the page refers to."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.references, self.images = [], [], [], []
        self.words, self.headings, self.state = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.images.append(base64.b64decode(value.split(",", 1)[1], validate=True))
            elif name in ("src", "href", "srcset", "action", "data", "style") or name[:2] == "on":
                self.references.append((tag, name, value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> closes nothing"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
            return
        if self.tags[-1:] == ["wbr"]:  # within a word
            self.words[-1] += data
            return
        if "strong" in self.open and not self.headings:
            self.state += data
        if "h2" in self.open:
            self.headings.append(data)
        self.words.append(data)


def written(content, folder):
    """The page, the Markdown and the JSON that a content gives; the page refers to nothing."""
    path = write_report(made.record(content), folder)
    assert path == folder / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.references == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    kept = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    return page, (folder / "report.md").read_text(encoding="utf-8"), kept


def _refuse(constant):
    raise AssertionError(f"not strict JSON: {constant}")


def figures_in(folder):
    return {path.name for path in folder.glob("*.png")}


@pytest.mark.parametrize("make", [made.complete, made.violated, made.after_contract, made.young])
def test_every_stage_of_a_run_gives_a_readable_report(make, tmp_path):
    content = make()
    page, markdown, kept = written(content, tmp_path)
    assert kept == content
    for verdict in content.get("verdicts", []):
        assert verdict["text"] in page.text
        assert verdict["text"] in markdown
    assert content["title"] in page.text
    assert content["title"] in markdown
    assert not list(tmp_path.glob(".*")), "a temporary file was left"
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {
        (tmp_path / "other").stat().st_mode
    }, "others may read a report as they may any file of this user"


def test_a_complete_run_says_what_held_what_it_cost_and_how_to_repeat_it(tmp_path):
    content = made.complete()
    page, markdown, _ = written(content, tmp_path)
    assert page.state == "HOLDS"
    assert "**HOLDS**: 6 of 6 verdicts hold." in markdown
    assert figures_in(tmp_path) == FIGURES
    assert [hash(image) for image in page.images] == [
        hash((tmp_path / name).read_bytes())
        for name in ("loss.png", "memory.png", "phases.png", "contract.png")
    ]
    first_screen = page.text[: page.text.index(page.headings[0])]
    dense = max(s["peak_bytes"] for s in content["arms"]["dense"]["steps"]) / made.MIB
    routed = max(s["peak_bytes"] for s in content["arms"]["routed"]["steps"]) / made.MIB
    for figure in (f"{dense:,.0f} MiB", f"{routed:,.0f} MiB", f"{routed / dense:.2f}\u00d7"):
        assert figure in first_screen
    for fact in ("4,336", "two cores", "36e0420c7e3e", "k2 1.23.4", "3 min 20 s", "synthetic"):
        assert fact in first_screen
    assert content["command"] in first_screen
    assert "To continue this run" not in first_screen
    for section in ("trajectory", "final_parameters"):
        assert content[section]["allowed"] in page.text
        assert content[section]["allowed"] in markdown
    assert "| relative difference in the first step, routed | 9.7e-08 |" in markdown
    assert all(f"]({name})" in markdown for name in FIGURES)


def test_tables_of_words_figures_and_figures_in_tables_can_be_laid_out_for_a_phone(tmp_path):
    written(made.complete(), tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    tables = html.split("<table")[1:]
    words = [table for table in tables if table.startswith(' class="words"')]
    assert len(words) == 2  # verdicts, stages
    for table in tables:
        assert ('class="number"' in table.split("</table>")[0]) is (table not in words)
    assert html.count('<p class="figure"><img ') == len(FIGURES)


def test_names_break_behind_their_parts_and_numbers_do_not():
    markdown = (
        "# asr/pruned_stateless7 (cpu)\n\n**HOLDS**: all\n\n| | value |\n| --- | ---: |\n"
        "| joiner.weight 0.001 % | 1.7e-05 |\n| bound | 2.3e-06 = 4 x 5.8e-07 (twin) |\n"
    )
    page = as_page(markdown, "asr/pruned_stateless7", "kind", "good", {})
    assert "<h1>asr/<wbr>pruned_<wbr>stateless7 (cpu)</h1>" in page
    assert '<th scope="row">joiner.<wbr>weight 0.001 %</th>' in page
    assert '<td class="number">1.7e-05</td>' in page
    assert '<td class="number long">2.3e-06 = 4 x 5.8e-07 (twin)</td>' in page


def test_a_violation_is_said_first_and_named_where_it_was_found(tmp_path):
    content = made.violated()
    page, markdown, _ = written(content, tmp_path)
    assert page.state == "VIOLATED"
    assert "4 of 6 verdicts hold, violated: contract, final parameters." in page.text
    assert f"Violated: {content['contract']['violations'][0]}" in page.text
    assert "**VIOLATED**" in markdown
    assert "\u2717 VIOLATED | contract" in markdown


def test_a_partial_run_says_so_with_its_reason_and_what_was_not_reached(tmp_path):
    page, markdown, _ = written(made.after_contract(), tmp_path)
    assert page.state == "PARTIAL"
    assert "interrupted by SIGINT during the dense run. 1 of 6 verdicts hold" in page.text
    assert markdown.splitlines()[2].startswith("**PARTIAL**: interrupted by SIGINT")
    assert figures_in(tmp_path) == {"contract.png"}
    for name in ("transducer loss", "trajectory", "final parameters", "finite", "resume"):
        assert f"| \u2013 not judged | {name} | not reached |" in markdown
    assert "The dense run: no step was measured (its stage: interrupted)." in page.text
    assert "The routed run: not reached." in page.text
    for text in (page.text, markdown):
        assert made.after_contract()["command"] in text
        assert made.after_contract()["continuation"] in text


def test_the_effective_bounds_of_gradients_and_parameters_stand_beside_the_distances(tmp_path):
    content = made.complete()
    content["contract"]["batches"][1]["gradient_bounds"] = {"encoder": 8e-5}
    content["contract"]["parameters_twin"][0]["rel_l2"] = 2e-6
    _, markdown, _ = written(content, tmp_path)
    cells = {}
    section = markdown.partition("## Contract")[2].partition("## ")[0]
    for line in section.splitlines():
        cells.setdefault(line.split(" | ")[0], line)
    assert " | 8.0e-05, configured 1.0e-05 | " in cells["| encoder"]
    # 4 x the twin's 2e-6 where that is more than the configured 1e-6
    assert cells["| encoder_embed"].endswith(" | 2.0e-08 | 8.0e-06 | 2.0e-06 |")
    assert cells["| encoder"].endswith(" | 2.0e-08 | 1.0e-06 | 1.5e-07 |")


def test_the_end_of_a_log_in_the_reason_keeps_its_lines(tmp_path):
    content = {**made.after_contract(), "reason": "the dense run ended; its log ends with:\nA\n  B"}
    page, markdown, _ = written(content, tmp_path)
    assert "not judged: 5. the dense run ended; its log ends with: A B" in page.text
    assert "<pre><code>A\n  B\n</code></pre>" in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert "```\nA\n  B\n```" in markdown


def test_a_partial_run_with_a_violation_says_both(tmp_path):
    content = {**made.violated(), "state": "partial", "reason": "stopped"}
    page, _, _ = written(content, tmp_path)
    assert page.state == "PARTIAL, VIOLATED"


def test_a_running_report_says_that_a_killed_run_leaves_it(tmp_path):
    page, markdown, _ = written(made.young(), tmp_path)
    assert page.state == "RUNNING"
    assert "it was killed, and this partial report is what it left" in page.text
    assert "Nothing was judged." in markdown
    assert figures_in(tmp_path) == set()
    assert page.headings == [
        "Training",
        "Memory and time",
        "Contract",
        "Final parameters",
        "Stop and resume",
        "What was routed",
        "Stages",
    ]


def test_an_empty_content_is_a_report_too(tmp_path):
    page, _, kept = written({}, tmp_path)
    assert kept == {}
    assert page.state == "STATE NOT RECORDED"


def test_keys_that_are_none_read_like_keys_that_are_absent(tmp_path):
    absent = made.young()
    optional = [n for n, field in RunRecord.model_fields.items() if field.default is None]
    none = {**dict.fromkeys(optional), **absent}
    assert written(none, tmp_path / "none")[1] == written(absent, tmp_path / "absent")[1]


def test_nan_is_spelt_out_in_json_and_shown(tmp_path):
    content = made.complete()
    for row in content["arms"]["routed"]["steps"][20:]:
        row["loss"] = math.nan
    content["trajectory"]["largest_relative_difference"] = math.nan
    content["contract"]["batches"][0]["gradients"][1]["rel_l2"] = math.inf
    _, markdown, kept = written(content, tmp_path)
    assert kept["arms"]["routed"]["steps"][29]["loss"] == "nan"
    assert kept["contract"]["batches"][0]["gradients"][1]["rel_l2"] == "inf"
    assert re.search(r"loss per frame, step 30 \| [\d.]+ \| nan \| difference nan", markdown)
    assert "| encoder | inf |" in markdown
    assert figures_in(tmp_path) == FIGURES


def test_a_report_can_be_written_again_from_its_json(tmp_path):
    content = made.complete()
    content["arms"]["routed"]["steps"][5]["loss"] = math.nan
    _, markdown, kept = written(content, tmp_path / "first")
    assert written(kept, tmp_path / "second")[1:] == (markdown, kept)


def test_one_step_is_enough(tmp_path):
    page, _, _ = written(made.complete(steps=1), tmp_path)
    assert figures_in(tmp_path) == FIGURES
    assert "loss per frame, step 1" in page.text


def test_markup_in_the_content_stays_text(tmp_path):
    nasty = '<script>alert("1 & 2")</script> </pre> | `x` *y* \\'
    content = made.after_contract()
    content.update(reason=nasty, title=nasty, command=f"run '{nasty}' ```", config_path=nasty)
    content["verdicts"][0]["text"] = nasty
    content["stages"][0].update(log=nasty, command=nasty)
    content["config"]["train_args"]["exp-dir"] = nasty
    content["contract"]["batches"][0]["gradients"][0]["group"] = nasty
    content["contract"]["violations"] = [nasty]
    page, markdown, _ = written(content, tmp_path)
    assert page.text.count('alert("1 & 2")') >= 8
    (command,) = re.findall(r"^(`{4,})\nrun '.*?\n\1$", markdown, re.MULTILINE | re.DOTALL)
    assert command == "````"
    outside_fences = re.sub(r"^(`{3,})\n.*?\n\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside_fences
    (row,) = [line for line in markdown.splitlines() if "holds | contract" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_without_matplotlib_the_numbers_stay_and_the_report_says_how_to_get_figures(
    tmp_path, monkeypatch
):
    written(made.complete(), tmp_path)
    real_import = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    page, markdown, _ = written(made.complete(), tmp_path)
    assert "No module named 'matplotlib'" in page.text
    assert "pip install 'panda-icefall[plots]'" in page.text
    assert page.images == []
    assert figures_in(tmp_path) == set(), "figures of an earlier report were left"
    assert "](loss.png)" not in markdown
    assert page.state == "HOLDS"


def test_a_report_on_the_way_may_leave_the_figures_for_the_end(tmp_path):
    written(made.complete(), tmp_path)
    page = Page(
        write_report(made.record(made.complete()), tmp_path, with_figures=False).read_text("utf-8")
    )
    assert "Figures are drawn when the run ends" in page.text
    assert page.images == []
    assert figures_in(tmp_path) == set()


def test_figures_of_an_earlier_run_in_the_same_folder_do_not_stay(tmp_path):
    written(made.complete(), tmp_path)
    (tmp_path / "mine.png").write_bytes(b"kept")
    written(made.after_contract(), tmp_path)
    assert figures_in(tmp_path) == {"contract.png", "mine.png"}


def test_content_that_json_cannot_carry_is_refused_before_anything_is_replaced(tmp_path):
    written(made.complete(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_report(made.record({**made.complete(), "config": {"path": tmp_path}}), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report(made.record(made.young()), tmp_path / "file" / "report")


def test_a_file_that_cannot_be_replaced_leaves_no_temporary_file(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        write_report(made.record(made.young()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]

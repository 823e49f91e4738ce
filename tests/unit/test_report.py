"""suite/report: one valid page that needs nothing else, in which every number says how it came to be."""

import io
import re
from collections.abc import Iterator
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from mae_transfer import results
from mae_transfer.ablations import slug
from mae_transfer.locks import is_held
from mae_transfer.record import DataSet, Record, Seconds, Sitting, Software, Weights
from mae_transfer.suite.graph.schema import Expectation, SuiteConfig, SuiteRow, SuiteTransfer
from mae_transfer.suite.published import Published
from mae_transfer.suite.published.measured import Elsewhere
from mae_transfer.suite.report import origins, pictures
from mae_transfer.suite.report import page as report
from mae_transfer.suite.store import records
from mae_transfer.suite.store.records import Note
from mae_transfer.suite.tables import figures, sheets, summary
from mae_transfer.suite.tables.cells import Cell
from mae_transfer.suite.tables.comparison import Row, Table
from tests.unit import test_tables

VOID = {"meta", "img", "link", "br", "hr", "input"}
CONFIG = "epochs = 7  # <script>alert(1)</script>"
SOFTWARE = Software(version="0.3", commit="abc123", dirty=True, packages={"python": "3.11", "torch": "2.9"})
PRETRAIN = "MAE norm_pixel, random 75%, 20 ep"


class Page(HTMLParser):
    """Checks that elements close in order; collects ids, references, and the links in cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.sources = list[str](), list[str](), list[str](), list[str]()
        self.numbers: list[tuple[str, str]] = []  # text and link in a cell
        self._link = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.open += [] if tag in VOID else [tag]
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if tag == "a" else []
        self._link = (values["href"] or "") if tag == "a" else self._link
        self.sources += [values[name] or "" for name in ("src", "srcset", "data") if name in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "a" and "td" in self.open:
            self.numbers.append((data, self._link))


def result(protocol: str, value: float | None, **changes: object) -> results.Result:
    """Return a result of an earlier version; one with a record if `changes` have it."""
    return test_tables.result(protocol, value, **({"record": None} | changes))


def suite(*, tables: tuple[str, ...] = ("1d", "3", "5"), **fields: object) -> SuiteConfig:
    about = {
        "title": "a & b",
        "tables": tables,
        "transfer": {"finetune": SuiteTransfer(tool="cls_train", config="c.py")},
    }
    return SuiteConfig.model_validate(about | fields)


def made(task: str = "classify", **changes: object) -> Record:
    sitting = Sitting(
        started_at="2026-01-01T00:00:00+00:00",
        first_step=0,
        software=SOFTWARE,
        devices=("H100", "H100"),
        device_batch=16,
        seconds=Seconds(train=1800.0, evaluate=60.0, save=5.0),
    )
    photos = DataSet(name="<photos>", kind="Folder", images=90, whole=100, classes=2, class_names=("<cat>", "dog"),
                     files=100, bytes=2**21, fingerprint="f1f2f3f4f5f6f7f8")  # fmt: skip
    fields = {
        "run": "seed0", "task": task, "method": "finetune", "scale": "mini", "config_digest": "c0ffee",
        "recipe_digest": "d1", "recipe": {"optim": {"lr": 0.5}, "seed": 0}, "seed": 0, "epochs": 4.0, "batch": 32,
        "data": {"train": photos},
        "sittings": (sitting,),
    }  # fmt: skip
    return Record.model_validate(fields | changes)


def write_run(root: Path, name: str, row: str, *found: results.Result, **note: object) -> Path:
    folder = root / name
    fields = {
        "suite": "s", "name": name, "role": "transfer", "row": row, "identity": "i", "state": "done", "seconds": 60.0,
        "command": ["python", "tools/cls_train.py", f"a {name[-1]}"],
    }  # fmt: skip
    records.write_note(folder, Note.model_validate(fields | note))
    if found:
        results.append(folder / "results.jsonl", found)
    return folder


def runs(root: Path) -> Iterator[Path]:
    for row, pretrain in (("pixel (w/ norm)", PRETRAIN), ("dVAE token", "MAE token, random 75%, 20 ep")):
        for seed, value in enumerate((60.0, 62.0)):
            name = f"{slug(row)}/finetune/seed{seed}"
            fields = {"scale": "mini", "pretrain": pretrain, "checkpoint_sha256": "5a" * 32, "dataset": "<shapes>"}
            chosen = "lr 1 of 2" if seed else None
            one = result("finetune", value, seed=seed, run=name, record=None, **fields)
            folder = write_run(root, name, row, one, chosen=chosen)
            (folder / "config.py").write_text(CONFIG)
            log = [f'{{"kind": "train", "step": {step}, "loss": {1.0 / step}}}' for step in (1, 2, 3)]
            (folder / "log.jsonl").write_text(
                "\n".join([*log, '{"kind": "eval", "step": 3, "val_top1": 0.6}', '{"kind": "tr'])
            )
            yield folder


def written(root: Path, cfg: SuiteConfig, defects: tuple[str, ...] = (), **rest: object) -> str:
    found, damaged = records.load([root])
    report.write(root / "report.html", cfg, found, [*damaged, *defects], **rest)  # type: ignore[arg-type]
    return (root / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    tmp_path = tmp_path_factory.mktemp("suite")
    folders = list(runs(tmp_path))
    (folders[0] / "reconstructions").mkdir()
    for step in (1, 2):
        Image.new("RGB", (40, 20)).save(folders[0] / "reconstructions" / f"step_{step}.png")
    write_run(tmp_path, "a/b/seed0", "a", state="failed", reason="out of <memory>")
    return written(tmp_path, suite(chance={"fine-tune": 10.0}), ("line 3 of <x> is broken",))


def check(page: str) -> Page:
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert all(source.startswith("data:image/webp;base64,") for source in parsed.sources)
    names = r"https?://(?!www\.w3\.org|matplotlib\.org|purl\.org|creativecommons\.org)"
    assert not re.search(r"@import|url\((?!#)|<link|<iframe|fetch\(|" + names, page)
    return parsed


def test_the_page_is_well_formed_and_whole(page: str) -> None:
    check(page)


def test_the_page_starts_with_what_was_run_and_the_summary(page: str) -> None:
    order = [page.index(text) for text in (
        "<h1>a &amp; b</h1>", "of scale mini", "<dt>transfers</dt><dd>finetune</dd>", 'id="summary"', 'id="charts"',
        'id="tables"', 'id="curves"', 'id="pictures"', 'id="runs"', 'id="records"',
    )]  # fmt: skip
    assert order == sorted(order)


def test_every_number_opens_to_the_values_of_its_runs_and_each_value_to_its_record(page: str) -> None:
    parsed = Page(page)
    values = [(text, link) for text, link in parsed.numbers if re.fullmatch(r"[\d.]+", text)]
    assert sorted({text for text, _ in values}) == ["60.00", "62.00"]
    assert len(values) == 2 * 2  # two rows of two seeds; tables 1d and 3 would repeat the summary
    assert len({link for _, link in values}) == 4
    assert all(f'<details class="entry" id="{link[1:]}">' in page for _, link in values)


def test_tables_that_say_no_more_than_the_summary_are_named_only(page: str) -> None:
    assert "Tables 1d, 3 have the numbers of the summary and no others." in " ".join(page.split())


def test_published_numbers_are_marked_in_the_chart_of_the_runs_that_they_stand_beside(tmp_path: Path) -> None:
    write_run(tmp_path, "mae/finetune/seed0", "mae", result("finetune", 83.5, scale="small"))
    (one,), _ = records.load([tmp_path])
    cfg = suite()
    overview = summary.summarise(cfg, [one])
    known = Published("3", "MAE", "ViT-B/16", 83.6, "%", "the paper", Elsewhere("its recipe"))
    runs = overview.tables[0].own[0].cells["fine-tune"].runs
    beside = Cell("MAE", "ViT-B/16", "%", runs, one.result, known)
    table = Table("3", "Table 3", "backbone", ("ViT-B/16",), (Row("MAE", {"ViT-B/16": beside}),))

    assert report.published_beside([table]) == {id(one.result): [83.6]}
    (chart,) = report.charts(overview, [table], {"mae": "C0"})
    assert "published" in chart.element
    (sheet,) = sheets.sheets([table])
    ((name, number),) = sheet.rows
    assert (name.text, number.text) == ("MAE", "83.5 (83.6, -0.1)")
    links = report.links_of(number.cell, origins.Origins([one], {}, tmp_path))
    assert [(link.label, link.text) for link in links] == [("seed 0", "83.50")]
    (alone,) = report.charts(overview, [], {"mae": "C0"})
    assert "published" not in alone.element


def test_results_of_an_earlier_version_are_marked_and_say_what_they_know(page: str) -> None:
    assert page.count(origins.EARLIER) == 4
    for fact in (
        "5a" * 32,
        "tools/cls_train.py &#39;a 1&#39;",
        "2026-01-01T00:00:00+00:00",
        "<dt>commit</dt><dd>a</dd>",
        "<dt>file</dt><dd>dvae_token/finetune/seed1/results.jsonl</dd>",
    ):
        assert fact in page


def test_a_run_that_failed_is_no_result_of_an_earlier_version(tmp_path: Path) -> None:
    about = {"scale": "mini", "status": "failed", "reason": "out of <memory>"}
    hole = result("finetune", None, **about)
    write_run(tmp_path, "mae/finetune/seed0", "mae", hole, state="failed", reason="out of <memory>")
    page = written(tmp_path, suite())
    check(page)
    assert origins.FAILED in page
    assert "val top1: failed, out of &lt;memory&gt;" in page
    assert not re.search("earlier version|not recorded", page.replace("<dt>commit</dt><dd>not recorded", ""))


def test_a_record_is_printed_once_and_linked_to_that_of_its_start(tmp_path: Path) -> None:
    pretrained = made("pretrain", method=PRETRAIN, run="p", labels=False, recipe_digest="d0")
    turned = dict(reversed(pretrained.recipe.items()))  # files of weights sort the keys
    exported = pretrained.exported().model_copy(update={"recipe": turned})
    start = Weights(kind="run", name=PRETRAIN, sha256="5a" * 32, record=exported)
    about = {"scale": "mini", "pretrain": PRETRAIN, "commit": None}
    first = result("m", 0.5, task="pretrain", metric="val_loss", unit="loss", record=pretrained, **about)
    write_run(tmp_path, "mae/pretrain/seed0", "mae", first, role="pretrain")
    for seed in (0, 1):
        record = made(inputs={"backbone": start}, seed=seed, recipe={"optim": {"lr": 0.5}, "seed": seed})
        some = [
            result("finetune", 60.0, metric=metric, seed=seed, record=record, **about) for metric in ("top1", "top5")
        ]
        write_run(tmp_path, f"mae/finetune/seed{seed}", "mae", *some)
    page = written(tmp_path, suite(tables=("2",)))
    parsed = check(page)

    assert page.count('<details class="entry" id="record-') == 3
    assert len({link for _, link in parsed.numbers if link.startswith("#record")}) == 3  # tables 2 and summary
    assert page.count(">record of mae/pretrain/seed0</a>") == 2  # from each transfer to the one pretraining
    assert page.count('<details class="entry recipe"') == 2
    assert page.count("optim.lr = 0.5") == 2
    assert "finetune (2 runs)" in " ".join(page.split())
    for fact in (
        "90 of 100 images, 2 classes); Folder; 100 files of 2.0 MiB; fingerprint f1f2f3f4f5f6f7f8; ",
        "classes: &lt;cat&gt;, dog",
        "2 x H100, 16 images per device; training 1800 s, evaluation 60 s, saving 5 s",
        "mae_transfer 0.3, commit abc123, with changed files; python 3.11, torch 2.9",
        "<dt>training</dt><dd>3 h on H100</dd>",  # three runs of half an hour on two devices
        "val top1 60 %, val top5 60 %",
    ):
        assert fact in page, fact
    assert origins.EARLIER not in page


def test_the_record_of_a_start_that_has_no_result_here_is_an_entry(tmp_path: Path) -> None:
    elsewhere = made("pretrain", method=PRETRAIN, run="elsewhere", labels=False)
    start = Weights(kind="run", name=PRETRAIN, record=elsewhere)
    one = result("finetune", 60.0, scale="mini", record=made(inputs={"backbone": start}, recipe_digest="d2"))
    write_run(tmp_path, "mae/finetune/seed0", "mae", one)
    page = written(tmp_path, suite())
    check(page)
    assert "<summary>elsewhere, pretrain</summary>" in page


def test_a_small_run_cannot_be_mistaken_for_a_reproduction(page: str) -> None:
    assert "Nothing here reproduces the paper: these runs are of scale mini" in page


@pytest.mark.parametrize(("scales", "text"), [
    ({"paper"}, "ran at the paper's scale"), ({"mini", "small"}, "of scale mini and small"),
    ({"paper", "mini"}, "Some of these runs are of scale"),
])  # fmt: skip
def test_the_scale_is_said_before_any_number(scales: set[str], text: str) -> None:
    assert text in report.warning(scales)


def test_what_failed_what_was_chosen_and_what_was_left_out_is_said(page: str) -> None:
    assert '<span class="part reason">out of &lt;memory&gt;</span>' in page
    assert "<dt>reason</dt><dd>out of &lt;memory&gt;</dd>" in page
    assert "lr 1 of 2" in page
    assert "line 3 of &lt;x&gt; is broken" in page
    assert "<script>alert(1)" not in page


def test_curves_charts_and_the_newest_drawing_are_shown(page: str) -> None:
    legends = (page.count("pixel (w/ norm), 2 seeds"), page.count("dVAE token, 2 seeds"))
    assert legends == (1, 1)  # a colour and a legend per row
    assert page.count("<svg") == 2  # a bar chart, and the losses; accuracy was measured once
    assert not re.search(r"<metadata|rdf:|xmlns:(?!xlink)", page), "elements that HTML has not"
    assert page.count("<img") == 1
    assert "pixel (w/ norm), step 2</figcaption>" in page


def test_expectations_are_judged_on_the_page(tmp_path: Path) -> None:
    list(runs(tmp_path))
    found, _ = records.load([tmp_path])
    expect = (
        Expectation(column="fine-tune", row="dVAE token", by=50.0),
        Expectation(column="fine-tune", row="dVAE token", by=70.0),
    )
    overview = summary.summarise(suite(), found)
    page = written(tmp_path, suite(), judged=summary.verdicts(overview, expect))
    check(page)
    assert "1 of 2 expectations do not hold." in page
    assert page.index("expected at least 70") < page.index("expected at least 50")  # those that fail come first


def test_the_report_of_a_suite_that_has_only_pretrained_says_what_is_to_come(tmp_path: Path) -> None:
    expect = (Expectation(column="fine-tune", row="mae", by=50.0),)
    cfg = suite(rows={"mae": SuiteRow(config="p.py")}, expect=expect)
    plan = dict.fromkeys(("mae/pretrain/seed0", "mae/finetune/seed0"))
    work: Any = SimpleNamespace(root=tmp_path, debug=False, plan=plan, folder=lambda name: tmp_path / name)
    report.refresh(cfg, work)
    assert not (tmp_path / "report.html").exists()

    one = result("m", 0.5, task="pretrain", metric="val_loss", unit="loss", scale="mini", pretrain=PRETRAIN)
    write_run(tmp_path, "mae/pretrain/seed0", "mae", one, role="pretrain")
    report.refresh(cfg, work)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    check(page)
    assert "<dt>runs</dt><dd>1 done, 1 to come</dd>" in page
    assert not re.search("expectation|<svg", page)

    fine = result("finetune", 40.0, scale="mini", pretrain=PRETRAIN)
    write_run(tmp_path, "mae/finetune/seed0", "mae", fine)
    report.refresh(cfg, work)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<dt>runs</dt><dd>2 done</dd>" in page
    assert "1 of 1 expectations do not hold." in page


def test_a_suite_and_its_jobs_write_the_report_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    monkeypatch.setattr(report, "write", lambda *_, **__: held.append(is_held(tmp_path / ".report.lock")))
    cfg, plan = suite(rows={"mae": SuiteRow(config="p.py")}), {"mae/pretrain/seed0": None}
    work: Any = SimpleNamespace(root=tmp_path, debug=False, plan=plan, folder=lambda name: tmp_path / name)
    one = result("m", 0.5, task="pretrain", metric="val_loss", unit="loss", scale="mini", pretrain=PRETRAIN)
    write_run(tmp_path, "mae/pretrain/seed0", "mae", one, role="pretrain")
    report.refresh(cfg, work)
    report.publish(cfg, work, Console(file=io.StringIO()), known=plan)
    assert held == [True, True]


def test_a_chart_has_the_mean_the_range_published_numbers_and_chance() -> None:
    rows = [figures.Bar("<a>", 60.0, 58.0, 62.0, 3, "C0", (63.5,)), figures.Bar("b", 20.0, 20.0, 20.0, 1, "C1")]
    text = figures.svg(figures.bars(rows, unit="%", chance=10.0), prefix="x")
    for shown in ("&lt;a&gt;", "60.0", "lowest to highest of 3 runs", "published", "chance 10"):
        assert shown in text, shown
    axes = figures.bars(rows, unit="%", chance=10.0).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [60.0, 20.0]
    assert axes.get_xlim()[1] > 63.5
    bare = figures.svg(figures.bars(rows[1:], unit="%", chance=None), prefix="x")
    assert not re.search("chance|published|lowest", bare)


def test_broken_inputs_are_said_and_the_page_is_written(tmp_path: Path) -> None:
    first, second, *_ = runs(tmp_path)
    (first / "log.jsonl").unlink()
    (second / "log.jsonl").write_bytes(b'\xff\xfe\n[1, 2]\n{"kind": "train", "loss": 1.0}\n')
    (first / "detections").mkdir()
    (first / "detections" / "0001.png").write_bytes(b"no <picture>")
    whole = Image.new("RGB", (400, 200), "red")
    whole.save(first / "detections" / "0002.png")
    (first / "detections" / "0002.png").write_bytes((first / "detections" / "0002.png").read_bytes()[:200])
    with (second / "results.jsonl").open("a") as file:
        file.write('{"run": "cut')
    (second / "config.py").write_bytes(b"\xff")
    page = written(tmp_path, suite())
    check(page)
    assert page.count("cannot be read: ") == 2
    assert "results.jsonl, line 2: " in page


def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = next(runs(tmp_path))
    assert pictures.logged(folder / "log.jsonl")["training loss"] == ([1, 2, 3], [1.0, 0.5, pytest.approx(1 / 3)])
    assert pictures.logged(tmp_path / "absent") == {}


def test_the_last_alarm_of_a_run_is_shown_under_it(tmp_path: Path) -> None:
    rows = [*runs(tmp_path)]
    assert "reason bad" not in written(tmp_path, suite())
    with (rows[0] / "log.jsonl").open("a") as log:
        log.write('{"kind": "alarm", "step": 20, "words": "collapse between steps 1 and 20: <a>"}\n')
        log.write('{"kind": "alarm", "step": 40, "words": "collapse between steps 20 and 40: <b>"}\n{"kind": "alarm"')
    page = written(tmp_path, suite())
    assert '<span class="part reason bad">collapse between steps 20 and 40: &lt;b&gt;</span>' in page
    assert "between steps 1 and 20" not in page


def test_a_legend_covers_no_curve_and_every_line_of_it_has_room() -> None:
    names = [f"row {number}" for number in range(9)]
    lines = [pictures.Curve(name, tuple(range(1000)), (1.0,) * 1000) for name in names]
    drawn = pictures.plot(lines, "training loss", dict.fromkeys(names, "C0"))
    drawn.draw_without_rendering()
    (axes,), (legend,) = drawn.axes, drawn.legends
    assert legend.get_window_extent().y0 >= 0
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
    assert axes.get_window_extent().height > 1.5 * drawn.dpi


def test_curves_of_pretrainings_that_share_a_row_are_told_apart(tmp_path: Path) -> None:
    runs = {}
    for name, row in (("mae_b", "MAE"), ("mae_l", "MAE"), ("dino", "DINO")):
        for seed in (0, 1):
            folder = tmp_path / name / "pretrain" / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "log.jsonl").write_text(
                "".join(f'{{"kind": "train", "step": {step}, "loss": {1 / step}}}\n' for step in (1, 2))
            )
            runs[folder] = Note(
                suite="s", name=str(folder.relative_to(tmp_path)), role="pretrain", row=row, identity="", command=[]
            )
    (picture,) = pictures.curves(runs, {})
    assert re.findall(r">([\w ]+, 2 seeds)<", picture.element) == ["mae_b, 2 seeds", "mae_l, 2 seeds", "DINO, 2 seeds"]


@pytest.mark.parametrize("row", [r"$\frac$ <b>", "_hidden", 'a "b" & c', "x" * 200])
def test_any_name_of_a_row_is_printed_as_it_is(row: str, tmp_path: Path) -> None:
    for blocks in (1, 2):
        one = result(f"partial-{blocks}", 60.0 + blocks, scale="mini")
        folder = write_run(tmp_path, f"mae/partial-{blocks}/seed0", row, one)
        (folder / "log.jsonl").write_text(
            "".join(f'{{"kind": "train", "step": {step}, "loss": 0.5}}\n' for step in (1, 2))
        )
    page = written(tmp_path, suite(tables=("figure 9",)))
    check(page)
    drawn = [unescape(text).lstrip("\u200b ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)]
    assert sum(text.startswith(row[:40]) for text in drawn) >= 4  # two bars, a curve of figure 9, the losses
    assert f'<th scope="row">{escape(row)}' in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_the_papers_figures_take_the_colour_of_the_pages_text(tmp_path: Path) -> None:
    for blocks in (1, 2):
        one = result(f"partial-{blocks}", 60.0 + blocks, scale="mini")
        write_run(tmp_path, f"mae/partial-{blocks}/seed0", "mae", one)
    page = written(tmp_path, suite(tables=("figure 9",)))
    texts = re.findall(r"<text [^>]*>", page[page.index('id="figures"') :])
    assert len(texts) >= 5
    assert all("fill: currentColor" in text for text in texts)
    assert figures.INK not in page

"""suite/report.py: one valid page that needs nothing else, in which every number says where it comes from."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mae_transfer import results
from mae_transfer.suite import pictures, records, report
from mae_transfer.suite.records import Note, Record
from tests.unit.test_tables import result

VOID = {"meta", "img", "link", "br", "hr", "input"}
CONFIG = "epochs = 7  # <script>alert(1)</script>"


class Page(HTMLParser):
    """Checks that elements close in order; collects ids and references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.sources = list[str](), list[str](), list[str](), list[str]()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.open += [] if tag in VOID else [tag]
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if tag == "a" else []
        self.sources += [values[name] or "" for name in ("src", "srcset", "data") if name in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()


def runs(root: Path) -> Iterator[Path]:
    for row, pretrain in (
        ("pixel (w/ norm)", "MAE norm_pixel, random 75%, 20 ep"),
        ("dVAE token", "MAE token, random 75%, 20 ep"),
    ):
        for seed, value in enumerate((60.0, 62.0)):
            folder = root / report.slug(row) / "finetune" / f"seed{seed}"
            note = Note(
                suite="s", name=str(folder.relative_to(root)), role="transfer", row=row, identity="i",
                command=["python", "tools/cls_train.py", f"a {seed}"],
                state="done", seconds=60.0, chosen="lr 1 of 2" if seed else None,
            )  # fmt: skip
            records.write_note(folder, note)
            fields = {"scale": "mini", "pretrain": pretrain, "checkpoint_sha256": "5a" * 32, "dataset": "<shapes>"}
            results.append(folder / "results.jsonl", [result("finetune", value, seed=seed, run=note.name, **fields)])
            (folder / "config.py").write_text(CONFIG)
            log = [f'{{"kind": "train", "step": {step}, "loss": {1.0 / step}}}' for step in (1, 2, 3)]
            (folder / "log.jsonl").write_text(
                "\n".join([*log, '{"kind": "eval", "step": 3, "val_top1": 0.6}', '{"kind": "tr'])
            )
            yield folder


@pytest.fixture
def page(tmp_path: Path) -> str:
    folders = list(runs(tmp_path))
    (folders[0] / "reconstructions").mkdir()
    for step in (1, 2):
        Image.new("RGB", (40, 20)).save(folders[0] / "reconstructions" / f"step_{step}.png")
    failed = Note(
        suite="s",
        name="a/b/seed0",
        role="transfer",
        row="a",
        identity="i",
        command=["x"],
        state="failed",
        reason="out of <memory>",
    )
    records.write_note(tmp_path / "a" / "b" / "seed0", failed)
    found, _ = records.load([tmp_path])
    report.write(tmp_path / "report.html", "a & b", ("1d", "3", "5"), found, ["line 3 of <x> is broken"], tmp_path)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_whole(page: str) -> None:
    parsed = Page(page)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert all(source.startswith("data:image/jpeg;base64,") for source in parsed.sources)
    assert not re.search(
        r"@import|url\((?!#)|<link|<iframe|fetch\(|https?://(?!www\.w3\.org|matplotlib\.org|purl\.org|creativecommons\.org)",
        page,
    )


def test_every_number_says_where_it_comes_from(page: str) -> None:
    assert page.count("61.00 [60.00..62.00] (2)") == 4  # two rows of table 1d, two of table 3
    for fact in (
        "5a" * 32,
        "tools/cls_train.py &#39;a 1&#39;",
        "2026-01-01T00:00:00+00:00",
        "config digest",
        "<dt>commit</dt><dd>a</dd>",
    ):
        assert fact in page
    assert page.count('href="#run-dvae_token_finetune_seed1"') == 2
    assert 'id="run-dvae_token_finetune_seed1"' in page


def test_a_small_run_cannot_be_mistaken_for_a_reproduction(page: str) -> None:
    assert "Nothing here reproduces the paper: these runs are of scale mini" in page
    assert '<th scope="col">published</th>' not in page


@pytest.mark.parametrize(("scales", "text"), [
    ({"paper"}, "ran at the paper's scale"), ({"mini", "small"}, "of scale mini and small"), ({"paper", "mini"}, "Some of these runs are of scale"),
])  # fmt: skip
def test_the_scale_is_said_before_any_number(scales: set[str], text: str) -> None:
    assert text in report.warning(scales)


def test_what_failed_what_was_chosen_and_what_was_left_out_is_said(page: str) -> None:
    assert "failed: out of &lt;memory&gt;" in page
    assert "lr 1 of 2" in page
    assert "line 3 of &lt;x&gt; is broken" in page
    assert "<script>alert(1)" not in page


def test_same_seed_differences_curves_and_the_newest_drawing_are_shown(page: str) -> None:
    assert "+0.00 [+0.00..+0.00] (2)" in page
    assert (page.count("pixel (w/ norm), 2 seeds"), page.count("dVAE token, 2 seeds")) == (
        1,
        1,
    )  # a colour and a legend per row
    assert page.count("<svg") == 1  # the losses; accuracy was measured once
    assert not re.search(r"<metadata|rdf:|xmlns:(?!xlink)", page), "elements that HTML has not"
    assert page.count("<img") == 1
    assert "step_2</figcaption>" in page


def test_a_log_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = next(runs(tmp_path))
    assert pictures.logged(folder / "log.jsonl")["training loss"] == ([1, 2, 3], [1.0, 0.5, pytest.approx(1 / 3)])
    assert pictures.logged(tmp_path / "absent") == {}


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
    (picture,) = pictures.curves(runs)
    assert re.findall(r">([\w ]+, 2 seeds)<", picture.element) == ["mae_b, 2 seeds", "mae_l, 2 seeds", "DINO, 2 seeds"]


def test_the_papers_figures_are_legible_on_a_dark_page(tmp_path: Path) -> None:
    found = [
        Record(result(f"partial-{blocks}", 60.0 + blocks, scale="mini"), tmp_path / "results.jsonl")
        for blocks in (1, 2)
    ]
    report.write(tmp_path / "report.html", "t", ("figure 9",), found, [], tmp_path)
    texts = re.findall(r"<text [^>]*>", (tmp_path / "report.html").read_text())
    assert len(texts) >= 5
    assert all(f"fill: {pictures.INK}" in text for text in texts)

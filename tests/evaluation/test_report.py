"""The report's files: whole, self-contained, escaped, and saying the same three times."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tfface.evaluation.evaluate import evaluate, worst_mistakes
from tfface.evaluation.fairness import by_group
from tfface.evaluation.pages import Code, Section, Table, Text, Tile
from tfface.evaluation.report import RESPONSIBLE_USE, Comparison, write_report

NASTY = "<script>alert(1)</script>|`_x_`.jpg"


@pytest.fixture(scope="module")
def report(predictions, tmp_path_factory):
    """The paths of a report in which everything is given."""
    photo = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    (_, caption), *_ = worst_mistakes(predictions, "gender")
    metrics = evaluate(predictions)
    return write_report(
        tmp_path_factory.mktemp("run") / "report",
        title="ARG on UTKFace & friends",
        summary="Heads on a frozen FaceNet.",
        metrics={"validation": metrics, "test": metrics | {"groups": by_group(predictions)}},
        predictions=predictions,
        comparison=[
            Comparison("gender accuracy", 0.93, "poster", 0.951, 0.002, 4741, 3),
            ("age MAE, years", None, "not given", 4.4),
        ],
        history=[{"epoch": 1, "loss": 2.0, "val_loss": float("nan")}, {"epoch": 2, "loss": 1.0, "val_loss": 1.5}],
        worst={"gender": [(photo, caption), (photo, NASTY)]},
        sections=[Section("Ablations", [Table(("variant", "accuracy"), [("63 classes", "0.95")])])],
        config={"recipe": "arg", "optimizer": {"learning_rate": 0.001}, NASTY: NASTY},
        versions={"keras": "3.15.1"},
        command="tfface reproduce arg",
        licences={"UTKFace": "non-commercial research only"},
        notes=["A note."],
    )


class Resources(HTMLParser):
    """Collects what a page refers to, its anchors and its tags."""

    def __init__(self, page: str):
        super().__init__()
        self.sources, self.links, self.ids, self.tags = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)


def test_html_fetches_nothing_and_runs_nothing(report):
    page = report["html"].read_text()
    resources = Resources(page)
    assert len(resources.sources) > 20
    assert all(source.startswith("data:image/") for source in resources.sources)
    assert not {"script", "link", "iframe", "object", "embed"} & set(resources.tags)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in re.sub(r"data:image/[^\"]*", "", page)
    for source in resources.sources:
        drawing = base64.b64decode(source.split(",")[1])
        references = re.findall(rb'(?:href|src)="([^"]*)"', drawing) if "svg" in source[:30] else []
        assert all(reference.startswith((b"#", b"data:")) for reference in references)


def test_links_of_the_contents_lead_somewhere(report):
    resources = Resources(report["html"].read_text())
    assert len(resources.ids) == len(set(resources.ids))
    assert {link.removeprefix("#") for link in resources.links} == set(resources.ids)
    assert {"published-and-ours", "gender", "race", "age-bins", "groups", "ablations"} <= set(resources.ids)


def test_names_from_outside_are_escaped(report):
    page, text = report["html"].read_text(), report["markdown"].read_text()
    assert "<script>" not in page + text
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;|") >= 3
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;\|\`\_x\_\`.jpg" in text
    assert "ARG on UTKFace &amp; friends" in page


def tables(text: str) -> list[list[list[str]]]:
    """Rows and cells of every table of a Markdown text."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_markdown_tables_are_whole(report):
    found = tables(report["markdown"].read_text())
    assert len(found) > 12
    for head, rule, *rows in found:
        assert all(re.fullmatch(r" :?---+:? ", cell) for cell in rule)
        assert rows
        assert {len(row) for row in rows} == {len(head)} == {len(rule)}


def test_comparison_says_published_ours_and_difference(report):
    head, rule, gender, age = tables(report["markdown"].read_text())[0]
    assert [cell.strip() for cell in head] == ["metric", "paper", "ours", "difference", "n", "source"]
    assert [cell.strip() for cell in rule] == [":---", "---:", "---:", "---:", "---:", ":---"]
    row = ["gender accuracy", "0.930", "0.951 ± 0.002 (3 seeds)", "+0.021", "4,741", "poster"]
    assert [cell.strip() for cell in gender] == row
    assert [cell.strip() for cell in age] == ["age MAE, years", "–", "4.40", "–", "–", "not given"]
    assert "where the images are others, a hint and no ranking" in report["markdown"].read_text()


def test_figures_lie_beside_the_markdown(report):
    named = re.findall(r"\]\((.*?)\)", report["markdown"].read_text())
    assert len(named) == len(set(named)) > 10
    assert {f"figures/{path.name}" for path in report["figures"].iterdir()} == set(named)


def test_json_holds_everything_and_no_nan(report, predictions):
    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(report["json"].read_text(), parse_constant=refuse)
    assert record["metrics"]["validation"] == evaluate(predictions)
    assert record["history"][0] == {"epoch": 1, "loss": 2.0, "val_loss": None}
    assert record["comparison"][0]["published"] == 0.93
    assert record["worst"]["gender"][1] == NASTY
    assert record["config"]["optimizer"]["learning_rate"] == 0.001


def test_words_on_use_and_licences_are_there(report):
    for path in (report["html"], report["markdown"]):
        text = path.read_text()
        assert "non-commercial research only" in text
        assert "tfface reproduce arg" in text
        assert all(words.split(":")[0] in text for words in RESPONSIBLE_USE)


def test_headline_has_the_figures_of_test(report, predictions):
    accuracy = evaluate(predictions)["tasks"]["gender"]["accuracy"]["value"]
    assert f'<span class="value">{accuracy:.3f}</span>' in report["html"].read_text()


def test_a_report_of_other_figures_replaces_an_earlier_one(tmp_path):
    own = tmp_path / "report" / "figures" / "drawn-by-hand.svg"
    own.parent.mkdir(parents=True)
    own.touch()
    for value in ("98.67", "99.23"):
        table = Table(("crop", "accuracy"), [("box", value)])
        paths = write_report(
            tmp_path / "report",
            title="LFW",
            headline=[Tile("Accuracy", value, "ten folds")],
            sections=[Section("Verification", [Text("Ten folds."), Code("tfface verify"), table])],
        )
    assert "99.23" in paths["html"].read_text()
    assert "98.67" not in paths["html"].read_text()
    assert own.exists()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "figures",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_no_table_of_gaps_stands_where_all_groups_are_too_small(predictions, tmp_path):
    few = predictions.chosen(np.arange(len(predictions.key)) < 20)
    metrics = {"test": evaluate(few) | {"groups": by_group(few)}}
    page = write_report(tmp_path, title="Few", metrics=metrics)["markdown"].read_text()
    assert "All figures by gender" in page
    assert "Gap: the worst group" not in page


def test_metrics_of_one_split_need_no_name(predictions, tmp_path):
    one_task = {"n": 400, "tasks": {"gender": evaluate(predictions)["tasks"]["gender"]}}
    paths = write_report(tmp_path, title="Gender", metrics=one_task)
    assert json.loads(paths["json"].read_text())["metrics"]["evaluation"]["n"] == 400


def test_pictures_must_be_uint8(tmp_path):
    with pytest.raises(ValueError, match=r"uint8\. Received: float64"):
        write_report(tmp_path, title="x", worst=[(np.zeros((4, 4, 3)), "a.jpg")])
    assert list(tmp_path.iterdir()) == []

"""The figures of README, docs and catalogue are those of the results files, and an edit by hand is caught."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from scripts import tables
from scripts.cli.errors import UserError
from scripts.error_report.demo_page import README_IMAGE_SOURCES
from scripts.tables import (
    MARKED,
    all_tables,
    catalogue_markdown,
    generated_pages,
    models_markdown,
    results_markdown,
    stale_lines,
    summary_markdown,
    with_tables,
)


ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """The pages and what they are made from, in a folder that a test may spoil."""
    for name in ("results", "hub_cards", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", *README_IMAGE_SOURCES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for file, text in generated_pages(tmp_path).items():
        file.write_text(text, encoding="utf-8")
    return tmp_path


def test_pages_show_the_results_files():
    rows = [line for line in results_markdown(ROOT / "results", "").splitlines() if line.startswith("| [")]
    assert rows, "no results files"
    for file, wanted in generated_pages(ROOT).items():
        assert stale_lines(file, wanted) == [], "run python scripts/tables.py"


@pytest.mark.parametrize("page", ["README.md", "docs/models.md", "docs/results.md", "hub_cards/README.md"])
def test_a_figure_edited_by_hand_is_caught(page, checkout, monkeypatch, command):
    monkeypatch.setattr(tables, "ROOT", checkout)
    code, out, _ = command(tables, "--check")
    assert (code, out) == (0, "")
    file = checkout / page
    text = file.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "| [faseg-mobilenetv2-camvid](" in line)
    file.write_text(text.replace(line, re.sub(r"\| (\d\d)\.(\d) \|", r"| \1.9 |", line, count=1)), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    code, out, _ = command(tables, "--check")
    assert code == 1 and page in out and "+" + line in out.splitlines()
    assert command(tables)[0] == 0 and file.read_text(encoding="utf-8") == text


def test_a_new_result_makes_the_pages_stale(checkout, monkeypatch, command):
    monkeypatch.setattr(tables, "ROOT", checkout)
    shutil.copy(checkout / "results/faseg-mobilenetv2-camvid.json", checkout / "results/faseg-swin-tiny-ade20k.json")
    code, out, _ = command(tables, "--check")
    assert code == 1 and "faseg-swin-tiny-ade20k" in out
    assert command(tables)[0] == 0 and command(tables, "--check")[0] == 0


def test_published_and_measured_stand_apart():
    table = models_markdown(ROOT / "hub_cards", ROOT / "results", "")
    rows = {
        line.split("](")[0].removeprefix("| ["): [cell.strip() for cell in line.split("|")]
        for line in table.splitlines()
    }
    published = yaml.safe_load((ROOT / "hub_cards/published.yaml").read_text())
    assert published.keys() <= rows.keys() and sum(name.startswith("faseg-") for name in published) == 5
    assert rows["faseg-swin-tiny-ade20k"][5] == "49.6 / 51.3"
    assert rows["faseg-resnet50-cityscapes"][5] == "80.5 / -"
    assert rows["faseg-mobilenetv2-camvid"][5] == "-" and rows["faseg-mobilenetv2-camvid"][4].endswith(" M")
    for model_id, row in rows.items():
        if model_id in published and not (ROOT / f"results/{model_id}.json").exists():
            assert row[6] == "not measured"


def test_every_table_is_on_a_page():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = [marked["name"] for page in pages for marked in MARKED.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(all_tables(ROOT, ""))


def test_a_table_goes_between_its_markers():
    page = with_tables("a\n<!-- models:begin -->old<!-- models:end -->\nb", all_tables(ROOT, "../"))
    table = models_markdown(ROOT / "hub_cards", ROOT / "results", "../hub_cards/")
    assert page == f"a\n<!-- models:begin -->\n{table}\n<!-- models:end -->\nb"
    assert "](../hub_cards/faseg-resnet50-ade20k)" in page
    assert "](faseg-resnet50-ade20k)" in catalogue_markdown(ROOT / "hub_cards", ROOT / "results")
    with pytest.raises(UserError, match="no-such"):
        with_tables("<!-- no-such:begin --><!-- no-such:end -->", {})


def test_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    assert len(summary_markdown(ROOT / "hub_cards", ROOT / "results", "").splitlines()) <= 12
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_published_numbers_are_those_of_the_authors_table(shared):
    """Every number of a row of the authors' README, which is recorded beside the project."""
    tables = list((shared / "seeds").glob("000_*.txt"))
    if not tables:
        pytest.skip(f"no authors' README in {shared / 'seeds'}")
    text = tables[0].read_text(encoding="utf-8")
    released = {"r50.pth": "resnet50", "swin_ti": "swin-tiny", "swin_b": "swin-base", "swin_l": "swin-large"}
    everything = yaml.safe_load((ROOT / "hub_cards/published.yaml").read_text())
    published = {name: row for name, row in everything.items() if name.startswith("faseg-")}
    found = set()
    for line in text.splitlines():
        if not line.startswith("| FASeg w/"):
            continue
        numbers = [cell.strip().rstrip("G") for cell in line.split("|")[3:-2]]
        backbone = next(name for key, name in released.items() if key in line)
        dataset = "cityscapes" if "cityscapes" in line else "ade20k"
        model_id = next(name for name in published if backbone in name and dataset in name)
        row = {key: str(value) for key, value in published[model_id].items() if key != "dataset"}
        assert list(row.values()) == numbers, model_id
        found.add(model_id)
    assert found == published.keys()

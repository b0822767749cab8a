"""Names, commands and URLs in files that others read."""

import base64
import csv
import io
import json
import re
import sys

import numpy as np
import pytest
import yaml
from huggingface_hub.repocard import metadata_load
from markdown_it import MarkdownIt

from configuration import FASegConfig
from scripts.cli.parser import PROJECT_ROOT
from scripts.data.arguments import DatasetArguments
from scripts.error_report.confusion import csv_link
from scripts.evaluation.results import command_line
from scripts.inference.shards import ShardFolder
from scripts.predict import published_name
from scripts.sharing.card_facts import card_file, read_card
from scripts.sharing.cards import model_card
from scripts.sharing.leaks import find_leak
from scripts.sharing.results_files import read_results
from scripts.storage.shared_text import code, code_fence, csv_cell, markdown, without_credentials
from scripts.training.arguments import TrainArguments, saved_recipe


HOSTILE = (
    "<script>alert(1)</script>", "a\n\n# heading", "[link](https://example.org)", "![](http://example.org/x.png)",
    "https://example.org", "www.example.org", "a | b | c", "`code`", "**bold** _so_ ~~not~~", "<!-- comment",
    "&lt;b&gt;", "\\", "$x$", "trailing\\", "{{ 7 * 7 }}", "{% raw %}", "---", "a: b # c", "\x1b[31mred",
    "line\r\nend",
)  # fmt: skip
RESULTS = PROJECT_ROOT / "results"
PLAIN = ("wall-other", "traffic light", "sidewalk_2", "t-shirt (red)", "Straße", "100%")


def shown(text):
    """The HTML of a Markdown page, as a hub renders it."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_as_it_is(name):
    for text in (markdown(name), code(name)):
        page = shown(f"| class | IoU |\n|---|---|\n| {text} | 1.0 |\n\nThe worst: {text} (1.0).\n")
        assert page.count("<tr>") == 2 and page.count("<td>") == 2
        assert not re.search(r"<(script|h\d|a|img|strong|em|s|!--)\b", page)
    assert "http" not in markdown(name) or "://" not in markdown(name)


def test_plain_names_stay_as_they_are():
    assert [markdown(name) for name in PLAIN] == list(PLAIN) and [csv_cell(name) for name in PLAIN] == list(PLAIN)


def test_a_block_of_code_ends_where_it_should():
    command = "python scripts/eval.py --x '\n```\n<script>\n'"
    page = shown(f"{code_fence(command)}bash\n{command}\n{code_fence(command)}\n")
    assert page.count("<pre>") == 1 and "<script>" not in page


def test_the_models_card_obeys_no_name():
    model_id = "faseg-mobilenetv2-camvid"
    results, facts = read_results(RESULTS / f"{model_id}.json"), read_card(card_file(model_id))
    usual = model_card(model_id, "user/name", FASegConfig(), facts, results)
    row = next(iter(results["per_class"].values()))
    results["per_class"] = dict.fromkeys(HOSTILE, row)
    results |= {"dataset": HOSTILE[0], "split": HOSTILE[2], "metric": HOSTILE[3], "project": {"commit": HOSTILE[7]}}
    results["protocol"] |= {"name": HOSTILE[7], "source": HOSTILE[0]}
    results["command"] += " '```\n# heading\n<script>'"
    results["command"] += " --dataset_name https://jane:secret@example.org/x"
    card = model_card(
        model_id, "user/name", FASegConfig(), facts, results, {"dataset_name": HOSTILE[0], "seed": HOSTILE[2]}
    )
    page, before = shown(card.text), shown(usual.text)
    assert "<script" not in page and "secret" not in card.text
    headings = re.findall(r"<h\d>(.*?)</h\d>", before)
    assert re.findall(r"<h\d>(.*?)</h\d>", page) == headings
    assert set(re.findall(r'(?:href|src)="(.*?)"', page)) - {"recipe.yaml"} == set(
        re.findall(r'(?:href|src)="(.*?)"', before)
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_of_predictions_holds_any_name(name, tmp_path):
    made_by = {"model": name, "dataset": name}
    ShardFolder(tmp_path, "test", 2, made_by).write_readme(3)
    card = metadata_load(tmp_path / "README.md")
    assert card["pretty_name"] == f"Label maps predicted by {name}"
    assert card["dataset_info"] == {"splits": [{"name": "test", "num_examples": 3}]}
    assert card["configs"][0]["data_files"] == [{"split": "test", "path": "data/test-*.parquet"}]
    body = shown((tmp_path / "README.md").read_text(encoding="utf-8").partition("\n---\n")[2])
    assert len(re.findall(r"<h\d>", body)) == 1 and not re.search(r"<(script|a|img)\b", body)


def test_a_csv_holds_no_formula():
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "road, wet"]
    link = csv_link(np.ones((6, 7), dtype=np.int64), names)
    rows = list(csv.reader(io.StringIO(base64.b64decode(re.search(r"base64,(.*?)\"", link)[1]).decode())))
    cells = [*rows[0][1:], *(row[0] for row in rows[1:])]
    assert cells == [f"'{name}" for name in names[:5]] * 1 + names[5:] + [f"'{name}" for name in names[:5]] + names[5:]
    assert rows[1][1:] == ["1"] * 6


# ---- URLs


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://jane:secret@example.org/a.parquet", "https://example.org/a.parquet"),
        ("s3://key:s@cret@host/bucket", "s3://host/bucket"),
        ("https://secret@example.org", "https://example.org"),
        ("eval.py --d 'https://jane:secret@example.org/a b'", "eval.py --d 'https://example.org/a b'"),
        ("hf://datasets/user/name@main/a", "hf://datasets/user/name@main/a"),
        ("https://example.org/a@b?c=d@e", "https://example.org/a@b?c=d@e"),
        ("user@example.org", "user@example.org"),
    ],
)
def test_urls_lose_user_and_password(text, kept):
    assert without_credentials(text) == kept


def test_no_password_is_written(monkeypatch):
    url = "https://jane:secret@example.org/a.parquet"
    monkeypatch.setattr(sys, "argv", ["eval.py", "--dataset_name", url, f"--class_map={url}"])
    recipe = saved_recipe(TrainArguments(dataset_name=url, backbone_weights=url))
    written = [command_line(), yaml.safe_dump(recipe), published_name(url), json.dumps(recipe)]
    assert all("example.org" in text and "secret" not in text for text in written)
    assert DatasetArguments(dataset_name=url).dataset_name == url  # what is read is what was given
    assert find_leak("dataset_name: https://token@example.org/a")[1] == "an address with a password"

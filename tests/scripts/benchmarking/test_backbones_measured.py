"""The list of backbones and what benchmark.py measured of them agree with the tests' cases."""

import json
import re

import pytest
from backbone_cases import REFUSED, TIMM, TRANSFORMERS, WITH_PYRAMID

from modeling_faseg.backbone_faseg import STRIDES
from scripts.benchmark import BenchmarkArguments, benchmark, check_arguments
from scripts.benchmarking.backbone_list import BACKBONES, config_fields, in_timm
from scripts.benchmarking.backbone_list import TIMM as IN_TIMM
from scripts.benchmarking.tables import backbones_markdown, overrides
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, parse_arguments, parse_overrides


RESULTS = PROJECT_ROOT / "results" / "backbones-cpu.json"


@pytest.fixture(scope="module")
def measured():
    """The records of the results file."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["parts"]


def test_the_list_has_the_backbones_of_the_tests():
    assert set(BACKBONES) == {*TRANSFORMERS, *TIMM}
    assert {name for name in BACKBONES if in_timm(name)} == set(TIMM)
    assert {name for name, fields in BACKBONES.items() if fields.get("simple_feature_pyramid")} == set(WITH_PYRAMID)
    assert all(config_fields(name)["backbone_config"].get("model_type") in (name, IN_TIMM) for name in BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_fields_of_the_page_are_flags(name):
    fields = config_fields(name)
    assert parse_overrides(overrides(fields)) == fields


def test_what_was_measured_is_what_the_tests_show(measured):
    """Refused are the cases that the tests show to be refused, and that no pyramid makes work."""
    assert set(measured) == set(BACKBONES)
    refused = {name for name, record in measured.items() if record["outcome"] == "refused"}
    assert refused == set(REFUSED) - set(WITH_PYRAMID)
    for name, record in measured.items():
        assert record["fields"] == config_fields(name), name
        if name in refused:
            assert re.search(REFUSED[name], record["refusal"]), name
        elif "weights" in record:
            # Two tensors of each map's norm, which a classifier has not, begin new; all others come from the file.
            assert record["weights"]["expected"] - record["weights"]["loaded"] in (0, 8), name
            assert record["relative_time"][1] > 0


def test_the_page_has_each_backbone_once(measured):
    rows = [line for line in backbones_markdown(RESULTS).splitlines() if line.startswith("| `")]
    assert sorted(line.split("`")[1] for line in rows) == sorted(measured)


@pytest.mark.system
def test_a_quick_run_measures_and_stores(tmp_path, capsys):
    file = tmp_path / "backbones.json"
    names = ["mobilenetv2_035", "mambaout_femto", "dinat"]
    flags = ["--backbones", "--quick", "--device", "cpu", "--repetitions", "1", "--output_file", str(file), "--only"]
    records = benchmark(parse_arguments(BenchmarkArguments, [*flags, *names]))
    assert list(records) == names and json.loads(file.read_text())["parts"] == json.loads(json.dumps(records))
    ours = records["mambaout_femto"]
    assert ours["adaptations"] == ["maps turned from channels last"] and ours["strides"] == list(STRIDES)
    assert ours["widths"] == [48, 96, 192, 288] and ours["weights"]["loaded"] == ours["weights"]["expected"]
    assert ours["relative_time"][1] == pytest.approx(ours["seconds"][1] / ours["reference_seconds"][1])
    assert records["mobilenetv2_035"]["adaptations"] == ["pad_type=same"]
    assert "natten" in records["dinat"]["refusal"] and records["dinat"]["parameters"] is None
    table = backbones_markdown(file)
    assert "2 work, 1 are refused." in table and all(name in capsys.readouterr().out + table for name in names)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbones", "--only", "convnext_ato"], r"--only convnext_ato: did you mean convnext_atto\?"),
        (["--backbones", "--scaling"], "--scaling with --backbones: leave one out"),
        (["--backbones", "--plot_file", "a.png"], "--plot_file with --backbones"),
    ],
)
def test_mistakes_are_user_errors(flags, message):
    with pytest.raises(UserError, match=message):
        check_arguments(parse_arguments(BenchmarkArguments, flags))

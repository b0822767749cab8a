"""The records of `benchmark.py --engines` as text and Markdown: what differs is said."""

import pytest

from scripts import benchmark
from scripts.benchmarking.engine_tables import engines_markdown, engines_table


def a_record(**labels):
    row = {"seconds": [0.1, 0.2, 0.3], "speedup": [0.9, 1.0, 1.1]}
    return {
        "title": "a model, 1 x 64 x 96", "compared_on": "3 images" if labels else None, "rounds": 3, "threads": 1,
        "load_average": 0.5, "versions": {"torch": "2.14.1"},
        "contestants": {"eager PyTorch": dict(row), "OpenVINO, gather": {**row, "file_bytes": 2_500_000, **labels}},
    }  # fmt: skip


def test_a_record_in_words():
    agreeing = a_record(equal_labels=0.99951, within_tolerance=True, decisions=1200, turned=2)
    lines = engines_table(agreeing).splitlines()
    assert lines[0] == (
        "a model, 1 x 64 x 96; labels compared on 3 images; 1 thread(s), 3 rounds in turns, load average 0.5; "
        "torch 2.14.1:"
    )
    assert lines[-1].split("  ")[0] == "OpenVINO, gather" and "99.951 %" in lines[-1] and "2 of 1,200" in lines[-1]
    assert "OUT OF TOLERANCE" not in lines[-1]
    differing = a_record(equal_labels=0.5, within_tolerance=False, decisions=1200, turned=2)
    assert "OUT OF TOLERANCE" in engines_table(differing)


def test_scores_and_eight_bits_in_words():
    record = a_record(equal_labels=0.989, mean_iou=52.5)
    record["contestants"]["eager PyTorch"]["mean_iou"] = 53.2
    record["calibrated_on"] = "16 other images"
    lines = engines_table(record).splitlines()
    assert "ranges of 8 bits from 16 other images; " in lines[0] and lines[1].endswith("mIoU")
    assert lines[2].endswith("53.20") and lines[3].endswith("52.50")
    assert "98.900 %" in lines[3] and " of " not in lines[3]


def test_random_weights_have_no_labels_in_the_table():
    text = engines_markdown({"random": a_record()})
    assert "labels compared" not in text and "| OpenVINO, gather | 200 (100-300) | 1.00x | - | - | 2.5 |" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engines", "--images", "."], "--images is for --trained_model: give that too"),
        (["--trained_model", "."], "--trained_model is for --engines: give that too"),
        (["--calibration_images", "."], "--calibration_images is for --engines: give that too"),
        (
            ["--engines", "--trained_model", ".", "--validation_masks", "."],
            "--validation_masks is for --images: give that too",
        ),
        (["--engines", "--quick", "--repetitions", "0"], "--repetitions 0"),
        (["--startup", "--engines"], "--engines with --startup: leave one out"),
        (["--startup", "--backbones"], "--backbones with --startup: leave one out"),
        (["--engines", "--backbones"], "--backbones with --engines: leave one out"),
        (["--engines", "--only", "compiled-512"], "--only with --engines: leave one out"),
        (["--engines", "--device", "cuda"], "--device cuda with --engines: leave it out"),
    ],
)
def test_flags_that_do_not_belong_together(flags, message, command):
    code, _, errors = command(benchmark, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]


def test_a_missing_engine_is_named(monkeypatch, command):
    monkeypatch.setattr(benchmark, "ENGINE_LIBRARIES", ("onnx", "no_such_engine"))
    code, _, errors = command(benchmark, "--engines", "--quick")
    assert code == 2 and "no_such_engine not installed: pip install no_such_engine" in errors[0]

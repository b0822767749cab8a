"""`train_log.jsonl`: what a line holds, what a resumed run keeps, and the curves drawn from it."""

import json
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from scripts.training.log import TrainLog, draw_curves, flat, per_layer, read_log, six_digits


def accelerator_of(sent=None, is_main_process=True, num_processes=1, reduce=None):
    sent = [] if sent is None else sent
    return SimpleNamespace(
        is_main_process=is_main_process,
        num_processes=num_processes,
        device=torch.device("cpu"),
        reduce=reduce,
        log=lambda values, step: sent.append((step, values)),
    )


def terms(loss, layers=3):
    """Of `layers` predictions; the mask term of layer i is i, that of the last one `layers - 1`."""
    names = [f"loss_mask_{index}" for index in range(layers - 1)]
    return {"loss": loss, "loss_mask": layers - 1.0, **{name: float(index) for index, name in enumerate(names)}}


def test_a_line_holds_means_since_the_line_before(tmp_path):
    sent = []
    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of(sent))
    log.add(0.25, terms(8.0))
    log.add(0.75, terms(10.0))
    log.started = time.perf_counter() - 4
    line = log.write_step(1, 0, {"backbone": 1e-5, "head": 1e-4}, 0.5, images=8)
    assert (line["loss"], line["loss_per_prediction"], line["loss_mask"]) == (9.0, 3.0, 2.0)
    assert line["layers"] == {"loss_mask": [0.0, 1.0, 2.0]}
    assert line["learning_rate"] == 1e-4 and line["learning_rates"] == {"backbone": 1e-5, "head": 1e-4}
    assert line["data_wait_seconds"] == 0.5
    assert line["data_wait_share"] == pytest.approx(0.25, rel=0.02)  # 1 second of 4
    assert line["images_per_second"] == pytest.approx(2, rel=0.02)
    assert 0.05 < line["peak_memory_gib"] < 1000
    assert json.loads((tmp_path / "log.jsonl").read_text()) == line
    (step, numbers) = sent[0]
    assert step == 1 and numbers["layers/loss_mask/02"] == 2.0 and numbers["learning_rates/backbone"] == 1e-5
    assert "step" not in numbers
    log.add(0.0, terms(6.0))
    assert log.write_step(2, 0, {"head": 1e-4}, 0.5, images=4)["loss"] == 6.0


def test_layers_come_in_order_past_nine():
    values = per_layer({"loss_dice": 13.0, **{f"loss_dice_{index}": float(index) for index in reversed(range(13))}})
    assert values == {"loss_dice": [float(index) for index in range(14)]}


def test_digits_and_names():
    assert six_digits({"a": 1.23456789, "b": [0.000123456789, 2], "c": "x"}) == {
        "a": 1.23457, "b": [0.000123457, 2], "c": "x",
    }  # fmt: skip
    assert flat({"a": 1, "b": {"c": [0.5, 0.25]}, "d": None, "e": "x"}) == {"a": 1, "b/c/00": 0.5, "b/c/01": 0.25}


def test_paused_time_does_not_slow_the_figures():
    log = TrainLog.__new__(TrainLog)
    log.reset()
    began = log.started
    with log.paused():
        time.sleep(0.05)
    assert 0.05 <= log.started - began < 1


def test_means_are_over_all_processes(tmp_path):
    def reduce(values, reduction):
        assert reduction == "mean"
        return values + 1

    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of(num_processes=2, reduce=reduce))
    log.add(0.5, {"loss": 3.0})
    assert log.means() == {"loss": 4.0, "data_wait_seconds": 1.5}


def test_only_the_main_process_writes(tmp_path):
    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of(is_main_process=False))
    log.write(step=1, loss=2.0)
    log.draw(at_once=True)
    assert list(tmp_path.iterdir()) == [] and log.last == {"step": 1, "loss": 2.0}


def test_a_resumed_run_drops_what_it_repeats_and_what_was_half_written(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert [line["step"] for line in read_log(file)] == [1, 2, 3]
    TrainLog(file, 2, accelerator_of()).write(step=3)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    TrainLog(file, 0, accelerator_of())
    assert file.read_text() == ""
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_line_is_named_and_the_others_are_kept(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    lines = [b'{"step": 1}', b"\xff\x00", b"[2]", b'{"loss": 1}', b'{"step": "x"}', b"[" * 100000, b'{"step": 2}', b""]
    file.write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_log(file)] == [1, 2]
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"{file}: line {number} is no line of a training log and is left out" for number in range(2, 7)]
    TrainLog(file, 2, accelerator_of())
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_sums_go_on_after_a_checkpoint(tmp_path):
    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of())
    log.add(0.5, terms(8.0))
    log.started -= 3
    again = TrainLog(tmp_path / "log.jsonl", 1, accelerator_of())
    again.load_state_dict(json.loads(json.dumps(log.state_dict())))
    again.add(0.5, terms(10.0))
    line = again.write_step(2, 0, {"head": 1e-4}, 0.5, images=6)
    assert line["loss"] == 9.0 and line["images_per_second"] == pytest.approx(2, rel=0.05)


def test_curves(tmp_path, capsys, whole_run):
    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of())
    log.draw(at_once=True)  # nothing to show yet
    empty = Image.open(tmp_path / "curves.png").tobytes()
    for step in range(1, 4):
        log.add(0.0, terms(9.0 / step))
        log.write_step(step, 0, {"backbone": 1e-5, "head": 1e-4}, 0.5, images=8)
        log.write(step=step, mean_iou=0.1 * step)
    log.draw()  # half a minute has not passed
    assert Image.open(tmp_path / "curves.png").tobytes() == empty
    log.draw(at_once=True)
    assert Image.open(tmp_path / "curves.png").tobytes() != empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]
    (tmp_path / "curves.png").unlink()
    (tmp_path / "curves.png").mkdir()
    log.draw(at_once=True)
    assert "curves.png not drawn" in capsys.readouterr().err


@pytest.mark.parametrize("evaluated", [False, True])
def test_curves_of_a_run_without_evaluation_have_no_panel_for_it(evaluated, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    log = TrainLog(tmp_path / "log.jsonl", 0, accelerator_of())
    log.add(0.0, terms(9.0))
    log.write_step(1, 0, {"head": 1e-4}, 0.5, images=8)
    if evaluated:
        log.write(step=1, mean_iou=0.5)
    monkeypatch.setattr("scripts.training.log.atomic_file", lambda file: nullcontext(file))
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    titles = [panel.get_title() for panel in drawn[0].axes]
    assert ("validation mIoU, %" in titles) == evaluated and len(titles) == 3 + evaluated
    assert all(panel.lines and not panel.texts for panel in drawn[0].axes)


def test_no_window_and_nothing_global(tmp_path):
    import sys

    draw_curves(tmp_path / "none.jsonl", tmp_path / "curves.png")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

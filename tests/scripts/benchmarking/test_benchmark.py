"""scripts/benchmark.py on tiny models: contestants do the same work, figures are what they claim to be."""

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from training_processes import SERVER
from transformers import AutoConfig, AutoModelForUniversalSegmentation

from scripts.benchmark import BenchmarkArguments, benchmark, check_arguments, chosen_parts
from scripts.benchmarking.comparing import floor_of, judged, measure_part, outputs_apart, summary
from scripts.benchmarking.contestants import Case, faseg_config, mask2former_config
from scripts.benchmarking.floor import count_multiply_adds, needed_multiply_adds
from scripts.benchmarking.measuring import Clock, in_child, interleave, matmul_rate, peak_of, quartiles
from scripts.benchmarking.parts import (
    EVALUATE,
    FASEG,
    FROZEN,
    MASK2FORMER,
    MASK2FORMER_HERE,
    MUST_SHOW,
    PARTS,
    PLAIN,
    SAME_WEIGHTS,
    Effort,
    Target,
    check_contestant,
)
from scripts.benchmarking.plain import DecoderWork, LossWork, MatcherWork
from scripts.benchmarking.scaling import needs, saved_bytes, saved_storages
from scripts.benchmarking.tables import benchmark_markdown, merge, part_table
from scripts.benchmarking.workloads import (
    Counting,
    DataPath,
    Inference,
    PostProcessing,
    TrainingStep,
    random_batch,
    random_images,
    random_label_maps,
)
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_arguments
from scripts.tables import results_markdown, with_tables


ROOT = Path(__file__).parents[3]
TINY = {"height": 64, "width": 128, "classes": 5, "queries": 10, "batch": 2, "quick": True}


# ------------------------------------------------------------------------------------------------- the whole command


@pytest.fixture
def uncollected(monkeypatch):
    """Without the collection of garbage before each run, which takes longer than a tiny model."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture
def shared_server(monkeypatch):
    """A process has one fork server: it keeps what the tests of training have it import, whoever comes first."""
    monkeypatch.setattr(type(SERVER), "set_forkserver_preload", lambda *_: None)


@pytest.mark.system
def test_quick_run_measures_stores_and_plots(tmp_path, capsys, uncollected, shared_server):
    file, plot = tmp_path / "results.json", tmp_path / "plot.png"
    flags = ["--quick", "--device", "cpu", "--repetitions", "3", "--output_file", str(file), "--plot_file", str(plot)]
    first = benchmark(parse_arguments(BenchmarkArguments, [*flags, "--only", "post-processing"]))
    flags += ["--contestants", FASEG, MASK2FORMER, "--no_memory"]
    benchmark(parse_arguments(BenchmarkArguments, [*flags, "--only", "resnet50-512", "training"]))
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["post-processing", "resnet50-512", "training"], "merged, not overwritten"
    assert parts["post-processing"] == json.loads(json.dumps(first["post-processing"]))
    for row in parts["post-processing"]["contestants"].values():
        assert row["peak_memory"] > 0 and row["memory_ratio"] > 0
    rows = parts["resnet50-512"]["contestants"]
    stages = ["processor", "backbone", "pixel decoder", "transformer decoder", "heads and the rest", "post-processing"]
    assert set(rows) == {FASEG, MASK2FORMER} and all(list(row["stages"]) == stages for row in rows.values())
    assert rows[MASK2FORMER]["speedup"] == [1, 1, 1] and rows[FASEG]["peak_memory"] is None
    rows = parts["training"]["contestants"]
    assert all(list(row["stages"]) == ["forward", "loss", "backward", "optimiser"] for row in rows.values())
    assert all(seconds[1] > 0 for row in rows.values() for seconds in row["stages"].values())
    assert plot.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "floor:" in printed and "not run, the model has no" not in printed
    table = benchmark_markdown(file)
    assert table.count(f"| {MASK2FORMER} |") == 3 and all(part_table(record) in printed for record in parts.values())


def test_a_frozen_backbone_is_not_trained():
    """Neither by the optimiser nor in the floor, which a backward pass through it is no part of."""
    setting = {**TINY, "backbone": "DINOv3 ViT-B"}
    groups = [
        {group["name"] for group in TrainingStep(Case(name, **setting)).optimizer.param_groups}
        for name in (FROZEN, FASEG)
    ]
    assert groups[0] == {"head", "head_no_decay"} and groups[1] == groups[0] | {"backbone", "backbone_no_decay"}


@pytest.mark.system
def test_a_frozen_backbone_is_measured_against_a_tuned_one(shared_server):
    record = measure_part(PARTS["dinov3-vit-base-training"], Effort("cpu", 1, 0.0, True, True))
    rows = record["contestants"]
    assert list(rows) == [FROZEN, FASEG] and record["baseline"] == FASEG and not record["skipped"]
    assert rows[FASEG]["memory_ratio"] == 1 and rows[FROZEN]["peak_memory"] > 0
    case = Case(FROZEN, **{**TINY, "backbone": "DINOv3 ViT-B"})
    frozen, tuned = (floor_of("training", dataclasses.replace(case, contestant=name)) for name in (FROZEN, FASEG))
    backbone = needed_multiply_adds(case)["backbone"]
    assert frozen["forward"] == tuned["forward"] and frozen["backward"] == tuned["backward"] - 2 * backbone > 0


@pytest.mark.system
def test_the_floor_of_a_recipe_is_its_own():
    """Not that of the ResNet-50 beside it; the two recipes have one backbone, and the widths of the head halve."""
    light, full, resnet = (Case(name, height=64, width=64) for name in ("FASeg light", "FASeg MobileNetV2", FASEG))
    assert light.has_own_floor and full.has_own_floor and not resnet.has_own_floor
    counts = [needed_multiply_adds(case) for case in (light, full, resnet)]
    assert counts[0]["backbone"] == counts[1]["backbone"] < counts[2]["backbone"]
    assert counts[0]["pixel decoder"] < counts[1]["pixel decoder"] / 2 < counts[2]["pixel decoder"]


def test_default_parts_are_those_that_must_be_shown():
    effort = Effort("cpu", 3, 1.0, True, False)
    assert list(chosen_parts(BenchmarkArguments(), effort)) == list(MUST_SHOW)
    assert list(chosen_parts(BenchmarkArguments(scaling=True), effort)) == ["scaling"]
    both = BenchmarkArguments(scaling=True, training_memory=True, only=["training"])
    assert list(chosen_parts(both, effort)) == ["training", "scaling", "training-memory"]
    wanted = {target.contestant for part in PARTS.values() for target in part.targets}
    assert wanted <= {name for part in PARTS.values() for name in part.contestants}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "resnet50-513"], "--only resnet50-513: did you mean resnet50-512?"),
        (["--contestants", "FASeg pruned"], "--contestants 'FASeg pruned': choose"),
        (["--device", "tpu"], "--device tpu: choose cpu or cuda"),
        (["--repetitions", "0"], "--repetitions 0: give at least 1"),
        (["--output_file", "."], "--output_file . is a folder: name a file"),
    ],
)
def test_mistakes_are_user_errors(flags, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        check_arguments(parse_arguments(BenchmarkArguments, flags))


def test_a_foreign_results_file_is_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"mean_iou": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="--output_file"):
        merge(file, "part", {})


def test_readme_shows_benchmarks_between_their_markers(tmp_path):
    row = {"total": [0.1, 0.2, 0.3], "speedup": [1.9, 2.0, 2.1], "peak_memory": 2**20, "memory_ratio": 0.25}
    record = {"title": "a part", "kind": "inference", "baseline": "other", "contestants": {"ours": row}}
    merge(tmp_path / "benchmark-cpu.json", "part", record)
    empty = (
        "<!-- results:begin -->\n<!-- results:end -->\n<!-- benchmark-cpu:begin -->old<!-- benchmark-cpu:end -->\nend"
    )
    tables = {
        "results": results_markdown(tmp_path, ""),
        "benchmark-cpu": benchmark_markdown(tmp_path / "benchmark-cpu.json"),
    }
    readme = with_tables(empty, tables)
    assert "| a part | ours | 200 (100-300) | 2.00x | 1 | 0.25 |  |" in readme and "old" not in readme
    assert readme.endswith("end") and readme.count("mIoU") == 1, "not among the evaluation's results"


# ------------------------------------------------------------------------------------------------------- contestants


def test_contestants_share_backbone_queries_and_classes():
    for backbone in ("ResNet-50", "Swin-T"):
        case = Case(FASEG, backbone=backbone)
        ours, theirs = faseg_config(case), mask2former_config(case)
        assert ours.backbone_config.to_dict() == theirs.backbone_config.to_dict()
        assert (ours.num_queries, ours.num_labels) == (theirs.num_queries, theirs.num_labels) == (100, 150)
        assert ours.decoder_layers == 13, "the released architecture"


def test_contestants_by_recipe_are_the_recipes_models():
    for name in PARTS["sizes-360x480"].contestants:
        check_contestant(name)
    light, full, reference = (faseg_config(Case(name, classes=11)) for name in PARTS["sizes-512"].contestants[::-1])
    assert (light.hidden_dim, light.encoder_layers, light.decoder_layers, light.num_queries) == (64, 1, 9, 50)
    assert (full.hidden_dim, full.encoder_layers, full.decoder_layers, full.num_queries) == (128, 3, 13, 50)
    assert (reference.hidden_dim, reference.num_queries, reference.backbone_config.model_type) == (256, 100, "resnet")
    assert light.num_labels == full.num_labels == reference.num_labels == 11


@pytest.mark.parametrize("contestant", [f"{FASEG} bf16", f"{FASEG} light", "HF SegFormer-B2", "HF EoMT-L"])
def test_other_contestants_run(contestant):
    stages = Inference(Case(contestant, **TINY)).run(0)  # raises unless the maps are of the images' size
    assert {"processor", "post-processing"} < set(stages)


def test_plain_implementation_decodes_matches_and_loses_alike():
    ours, plain = (DecoderWork(Case(name, **TINY)) for name in (FASEG, PLAIN))
    inputs = ours.inputs(1)
    for own, other in zip(ours.predictions(*inputs), plain.predictions(*inputs), strict=True):
        for left, right in zip(own, other):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    matchers = [MatcherWork(Case(name, **TINY)) for name in (FASEG, PLAIN)]
    inputs = matchers[0].inputs(1)
    found = []
    for matcher in matchers:
        found.append(matcher.matches(inputs))
    assert [[len(queries) for queries, _ in images] for images in found[0]] == [[5, 5]] * 6
    # Points are drawn at random, and not in the same order: losses agree on average only.
    averages = []
    for name in (FASEG, PLAIN):
        work = LossWork(Case(name, **TINY))
        averages.append(torch.stack([work.loss(work.inputs(seed)).detach() for seed in range(8)]).mean())
    torch.testing.assert_close(averages[0], averages[1], rtol=0.03, atol=0)


@pytest.mark.parametrize("backbone", ["ResNet-50", "Swin-T"])
def test_mask2former_here_has_the_weights_of_the_other(backbone):
    ours, theirs = (Inference(Case(name, backbone, **TINY)) for name in SAME_WEIGHTS)
    apart = outputs_apart(ours, theirs)
    assert apart["class logits"] < 1e-4 and apart["mask logits"] < 1e-4 and apart["labels"] < 1e-3
    assert list(ours.run(1)) == list(theirs.run(1)), "the comparison leaves nothing in the stages"
    with torch.no_grad():
        ours.model.class_predictor.bias += 0.5
    assert outputs_apart(ours, theirs)["class logits"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.system
def test_a_part_of_equal_weights_says_how_far_outputs_are_apart(uncollected):
    record = measure_part(PARTS["mask2former-resnet50-512"], Effort("cpu", 1, 0.0, True, False))
    assert set(record["contestants"]) == set(SAME_WEIGHTS)
    assert "equal weights, one input: class logits at most" in part_table(record)
    assert not measure_part(PARTS["resnet50-512"], Effort("cpu", 1, 0.0, True, False), [FASEG])["outputs_apart"]


# --------------------------------------------------------------------------------------------------------- measuring


def test_inputs_are_fresh_and_the_same_for_all():
    ours, theirs = Case(FASEG, **TINY), Case(MASK2FORMER, **TINY)
    assert random_images(ours, 3)[0].tobytes() == random_images(theirs, 3)[0].tobytes()
    assert random_images(ours, 3)[0].tobytes() != random_images(ours, 4)[0].tobytes()
    batch = random_batch(ours, 3)
    assert all((masks.sum(0) == 1).all() for masks in batch["mask_labels"]), "every pixel in one region"
    assert batch["mask_labels"][0].shape == (5, 64, 128) and batch["class_labels"][0].sort().values.tolist() == [
        *range(5)
    ]


def test_contestants_take_turns_and_the_first_round_does_not_count(uncollected):
    seen = []
    runs = {name: lambda seed, name=name: seen.append((name, seed)) or {"all": 1.0} for name in "ab"}
    measured, rates = interleave(runs, 2, 60.0, lambda: 5.0)
    assert seen == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert len(measured["a"]) == len(measured["b"]) == len(rates) == 2
    assert len(interleave(runs, 9, 0.0, lambda: 5.0)[1]) == 3, "out of time, but at least three rounds"


def test_speed_ups_are_per_round():
    rounds = [{"x": seconds} for seconds in (1.0, 2.0, 4.0)]
    row = summary(rounds, [2.0, 4.0, 8.0], {"x": 30}, rate=20.0)
    assert row["speedup"] == [2.0, 2.0, 2.0] and row["total"] == [1.5, 2.0, 3.0]
    assert row["share_of_floor"] == {"x": 0.75, "total": 0.75}
    assert quartiles([3.0]) == [3.0, 3.0, 3.0]


def test_targets_are_judged_on_speed_and_memory():
    rows = {"ours": {"speedup": [1, 2.0, 3], "memory_ratio": 0.4}}
    assert judged(Target("ours", 2.0, 0.4), rows)["met"] is True
    assert judged(Target("ours", 2.0, 0.3), rows)["met"] is False
    assert judged(Target("ours", 2.1), rows)["met"] is False
    assert judged(Target("theirs", 2.0), rows)["met"] is None


def test_the_clock_separates_watched_parts_from_the_rest():
    class Sleep(torch.nn.Module):
        def forward(self, seconds):
            time.sleep(seconds)

    clock, inner = Clock(torch.device("cpu")), Sleep()
    clock.watch("backbone", inner)
    with clock.stage("model"):
        inner(0.05)
        time.sleep(0.02)
    stages = Clock.split(clock.take(), "model", "rest")
    assert list(stages) == ["backbone", "rest"] and clock.take() == {}
    assert 0.05 <= stages["backbone"] < 0.2 and 0.02 <= stages["rest"] < 0.2


@pytest.mark.system
def test_multiply_adds_of_the_released_model():
    plain = count_multiply_adds(Case(MASK2FORMER_HERE))
    counts = count_multiply_adds(Case(FASEG))
    assert plain["backbone"] == counts["backbone"]
    assert plain["transformer decoder"] < 0.8 * counts["transformer decoder"], "four layers and HRCA less"
    assert counts["post-processing"] == 100 * 150 * 512 * 512
    assert counts["backbone"] / 1e9 == pytest.approx(21.4, rel=0.01)  # ResNet-50 at 512x512 without its classifier
    assert 60e9 < sum(counts.values()) < 73.4e9, "below the reference's, which predicts every mask at full size"
    assert matmul_rate(torch.device("cpu"), size=256) > 1e8


def peaks(kernel_keeps_the_peak, file):
    """Peaks of a run of 64 MiB that also reads a mapped file of 64 MiB, and of one of nothing."""
    library = np.memmap(file, mode="r")

    def refuse(*_, **__):
        raise PermissionError

    def run(_):
        image = torch.zeros(64 * 2**20 // 4).add_(1)
        time.sleep(0.05)
        return {"sum": image[0].item() + int(library[::4096].sum())}

    with nullcontext() if kernel_keeps_the_peak else mock.patch.object(Path, "write_text", refuse):
        return peak_of(run, torch.device("cpu")), peak_of(lambda _: {}, torch.device("cpu"))


@pytest.mark.parametrize("kernel_keeps_the_peak", [True, False])
def test_peak_memory_is_that_of_the_run(kernel_keeps_the_peak, shared_server, tmp_path):
    """Measured in a process of its own, as the benchmark does; libraries' pages come and go as the kernel likes."""
    file = tmp_path / "library"
    file.write_bytes(bytes(64 * 2**20))
    of_the_run, of_nothing = in_child(peaks, kernel_keeps_the_peak, file)
    assert 60 * 2**20 < of_the_run < 90 * 2**20
    assert 0 <= of_nothing < 8 * 2**20


def test_post_processing_uses_each_processor():
    works = [PostProcessing(Case(name, **TINY)) for name in (FASEG, MASK2FORMER)]
    assert {type(work.processor).__name__ for work in works} == {"FASegImageProcessor", "Mask2FormerImageProcessor"}
    assert all(list(work.run(0)) == ["post-processing"] for work in works)


def test_work_around_the_model():
    for name in (FASEG, MASK2FORMER):
        stages = DataPath(Case(name, **TINY)).run(0)
        assert list(stages) == ["decode", "resize and normalise"] and min(stages.values()) > 0
    for name in (FASEG, EVALUATE):
        assert Counting(Case(name, **TINY)).run(0)["counting"] > 0
    prediction, reference = random_label_maps(Case(FASEG, **TINY), 0)
    assert set(prediction.ravel()) == {*range(5)} and set(reference.ravel()) == {*range(5), 255}
    assert 0.05 < (prediction != reference).mean() < 0.9


# --------------------------------------------------------------------------------------------------- training memory


@pytest.mark.slow
def test_saved_bytes_grow_with_the_batch():
    one, two = (saved_bytes("hub_cards/faseg-resnet50-ade20k", False, 64, 64, batch, False, "cpu") for batch in (1, 2))
    assert one["state"] == two["state"] == 16 * sum_of_parameters() - 12 * 53_120, "batch norms learn nothing"
    assert 1.8 < two["saved"] / one["saved"] < 2.1, "batch norms are frozen: nearly all of it is per image"


def test_saved_bytes_equal_what_is_kept():
    """On a part whose saved tensors are known: a matrix product keeps its inputs, a ReLU its result."""
    weight = torch.nn.Parameter(torch.ones(8, 8))
    image = torch.ones(4, 8)
    with saved_storages([weight]) as counted:
        (image @ weight).relu().sum()
    assert counted() == 2 * 4 * 8 * 4


def sum_of_parameters() -> int:
    """Of the released ResNet-50 model, from its configuration alone."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(ROOT / "hub_cards" / "faseg-resnet50-ade20k")
        model = AutoModelForUniversalSegmentation.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def test_what_fits_is_linear_in_the_batch():
    gigabyte = 2**30
    fitting = needs({"state": gigabyte, "saved": 3 * gigabyte}, {"state": gigabyte, "saved": 5 * gigabyte})
    assert (fitting["per_image"], fitting["fixed"]) == (2 * gigabyte, 2 * gigabyte)
    assert fitting["largest_batch"] == {"8": 2, "16": 5, "24": 9, "80": 33}
    assert needs(None, None)["largest_batch"] == {}, "out of memory"

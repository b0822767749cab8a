"""All findings about samples, classes and splits, from the counts."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.data.ignored import IGNORE_INDEX
from scripts.dataset_check.counts import FaultCount, SplitCounts
from scripts.dataset_check.finding import LEVELS, Evidence, Finding
from scripts.dataset_check.id_findings import id_findings
from scripts.dataset_check.label_rule import IGNORED
from scripts.dataset_check.segment_findings import SEGMENT_FAULTS, segment_findings
from scripts.evaluation.degenerate import values_flag
from scripts.models.tasks import INSTANCE, SEMANTIC


ENOUGH_MAPS = 100  # to call a class rare
FEW_MAPS = 5
# Level, what is wrong, and the fix of the faults that show in single samples.
FAULTS = {
    "unreadable-image": ("error", "the image cannot be read", "replace them, or leave the rows out"),
    "unreadable-map": ("error", "the label map cannot be read", "replace them, or leave the rows out"),
    "swapped-size": (
        "error",
        "width and height of map and image are swapped",
        "turn the map, or remove the EXIF orientation of the image; check which is upright",
    ),
    "size-mismatch": (
        "error",
        "map and image differ in size",
        "resize the map with nearest neighbour, and check that the two belong together",
    ),
    "rgb-maps": (
        "error",
        "the map is in colours, not one id per pixel",
        'write the colour of each class into a file, {"NAME": "#rrggbb", ...}, and give it by --mask_colors',
    ),
    "maps-not-ids": ("error", "the map holds no class ids", "store whole numbers from 0 on, one id per pixel"),
    "lossy-maps": ("error", "the map is a JPEG, which blurs ids at every edge", "write PNGs from the source"),
    "map-without-class": (
        "warning",
        "the map holds nothing but ignored pixels",
        "leave these rows out: they teach nothing",
    ),
    **SEGMENT_FAULTS,
}


def diagnose(evidence: Evidence) -> list[Finding]:
    """All findings, the gravest first."""
    findings = segment_findings(sample_faults(evidence), evidence) + id_findings(evidence)
    renumbered = {
        "shifted-by-one", "labels-not-reduced", "labels-reduced-twice", "ids-out-of-range", "instances-as-classes",
    }  # fmt: skip
    if not renumbered & {finding.name for finding in findings}:
        # With wrong ids every class would seem empty, rare or missing somewhere.
        classes = class_findings(evidence)
        as_class = next((finding for finding in findings if finding.name == "255-as-class"), None)
        if as_class:  # says which class is empty, and why
            said = ("empty-class", "too-few-classes" if as_class.level == "error" else "")
            classes = [finding for finding in classes if finding.name not in said]
        findings += classes
    findings += [finding for counts in evidence.splits.values() for finding in split_findings(counts, evidence)]
    return in_order(findings)


def in_order(findings: list[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def sample_faults(evidence: Evidence) -> list[Finding]:
    """Faults that single samples show, one finding each over all splits."""
    findings, samples = [], sum(counts.samples for counts in evidence.splits.values())
    for name, (level, what, fix) in FAULTS.items():
        found = {split: counts.faults[name] for split, counts in evidence.splits.items() if name in counts.faults}
        if found:
            findings.append(sample_fault(name, level, what, fix, found, samples))
    return findings


def sample_fault(name: str, level: str, what: str, fix: str, found: Mapping[str, FaultCount], samples: int) -> Finding:
    """The finding of a fault seen in samples."""
    first = next(iter(found.values()))
    total = sum(fault.count for fault in found.values())
    times = sum(fault.times for fault in found.values())
    if name == "unreadable-image" and "--" in first.evidence[0]:
        fix = "as this line says; training tells the range of several images"
    often = f" ({times} times)" if times > total else ""
    message = (
        f"in {total} of {samples} samples{often} {what}, such as {', '.join(first.names[:3])}: {first.evidence[0]}"
    )
    details = {
        split: {"count": fault.count, "times": fault.times, "first": fault.names} for split, fault in found.items()
    }
    examples = [example for fault in found.values() for example in fault.examples]
    return Finding(level, name, tuple(found), message, fix, details, examples[:3])


# --------------------------------------------------------------------------------------------------- classes, splits


def class_findings(evidence: Evidence) -> list[Finding]:
    """Classes that are empty, rare, or in one split only."""
    if few := too_few_classes(evidence):
        return [few]
    if not evidence.names or not evidence.enough():
        return []
    findings, absent = [], evidence.absent()
    read = "" if evidence.complete else " in the samples read"
    level = "warning" if evidence.complete else "note"
    if absent:
        ignored = evidence.share(IGNORE_INDEX)
        at_255 = f"; are its pixels stored as 255 (ignored, {ignored:.1f} % of all)?" if ignored >= 1 else ""
        counted = f"{len(absent)} of {len(evidence.names)} classes never occur{read}"
        message = f"{counted}: {evidence.called(absent)}{at_255}"
        fix = "take it out of id2label and number the others anew (--class_map does), or look where its pixels went"
        findings.append(Finding(level, "empty-class", tuple(evidence.splits), message, fix, {"classes": absent}))
    train, validation = evidence.splits.get(evidence.train), evidence.splits.get(evidence.validation)
    if train and validation and train.maps and validation.maps:
        pairs = (
            (level, "class-not-in-train", train, validation, "put images of it into the training split"),
            (
                "note",
                "class-not-in-validation",
                validation,
                train,
                "its IoU is not measured: eval.py wants --allow_absent_classes",
            ),
        )
        for level, name, lacking, having, fix in pairs:
            classes = [k for k in evidence.names if having.class_pixels[k] and not lacking.class_pixels[k]]
            if classes:
                message = f"{evidence.called(classes)} occurs in {having.split} but not in {lacking.split}{read}"
                findings.append(Finding(level, name, (lacking.split,), message, fix, {"classes": classes}))
    if train and train.maps >= ENOUGH_MAPS:
        rare = [k for k in evidence.names if 0 < train.class_maps[k] < FEW_MAPS]
        if rare:
            message = f"{evidence.called(rare)} is in fewer than {FEW_MAPS} of {train.maps} training maps"
            fix = "add images of it, or merge it into another class (--class_map)"
            findings.append(Finding("note", "rare-class", (train.split,), message, fix, {"classes": rare}))
    return findings


def too_few_classes(evidence: Evidence) -> Finding | None:
    """Data on which every model would be right, or none could be; None for others."""
    names, present = evidence.names or {}, [index for index in evidence.names or () if evidence.class_pixels[index]]
    if not evidence.maps or not names or len(present) > 1 or not evidence.complete:
        return None
    if present and evidence.segments is not None and evidence.segments.task != SEMANTIC:
        return None
    if present:
        message = f"{evidence.called(present)} is the only class that occurs, so no score can fail"
        ids = " ".join(f"{index}=NAME" for index in sorted(evidence.ids)[:8])
        flags = values_flag(names) if set(evidence.ids) == {0, IGNORE_INDEX} else f"--mask_values {ids}"
        fix = f"name all values that the maps hold, each by a name of its own: {flags}"
    else:
        message, fix = "no pixel of any class occurs, all are ignored", "check which ids mark the classes"
    return Finding("error", "too-few-classes", tuple(evidence.splits), message, fix, {"classes": present})


def split_findings(counts: SplitCounts, evidence: Evidence) -> list[Finding]:
    """What concerns one split as a whole."""
    where = (counts.split,)
    if not counts.samples:
        return [Finding("error", "empty-split", where, "it has no sample", "check the files of the split")]
    findings = []
    total = sum(counts.class_pixels.values())
    objects_alone = evidence.segments is not None and evidence.segments.task == INSTANCE
    if total and counts.class_pixels[IGNORED] > total / 2 and not objects_alone:
        share = 100 * counts.class_pixels[IGNORED] / total
        message, percent = f"{share:.0f} % of its pixels are ignored", {"percent": round(share, 2)}
        fix = "check that the ignored ids are no class (ids and their names are listed in the report)"
        findings.append(Finding("warning", "mostly-ignored", where, message, fix, percent, counts.overlays[:2]))
    others = {mode: count for mode, count in counts.image_modes.items() if mode != "RGB" and "band" not in mode}
    if others:
        listed = ", ".join(f"{count} {mode}" for mode, count in sorted(others.items()))
        message = f"{sum(others.values())} of {counts.samples} images are not RGB ({listed}) and are converted"
        fix = "nothing, unless the channels matter: transparency is dropped, grey becomes three equal channels"
        findings.append(Finding("note", "image-modes", where, message, fix, dict(others)))
    if counts.duplicates:
        pairs = ", ".join(
            f"{pair.name} = {pair.other}{' mirrored' if pair.mirrored else ''}" for pair in counts.duplicates[:3]
        )
        count = counts.number_of_duplicates
        more = f" and {count - 3} more" if count > 3 else ""
        message = f"in {count} of {counts.samples} samples the image is (nearly) in the other split: {pairs}{more}"
        details = {
            "count": count,
            "pairs": [[pair.name, pair.other, pair.bits, pair.mirrored] for pair in counts.duplicates],
        }
        fix = "take them out of one split: scores on trained images say nothing; split videos by sequence"
        findings.append(Finding("error", "near-duplicate", where, message, fix, details))
    return findings

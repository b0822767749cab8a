"""Findings about segments: the faults that single samples show, and what all of them together tell."""

from __future__ import annotations

from dataclasses import replace

from scripts.data.id_pieces import IdPieces
from scripts.dataset_check.counts import merged
from scripts.dataset_check.finding import Evidence, Finding
from scripts.evaluation.degenerate import AS_CLASSES


LISTED = "the list of segments"
# Level, what is wrong, and the fix of the faults of segments that show in single samples.
SEGMENT_FAULTS = {
    "wrong-encoding": (
        "error",
        "the label is not of the encoding it is read in",
        "choose another --label_encoding, or write labels as docs/data.md says",
    ),
    "segments-mismatch": ("error", f"map and {LISTED} disagree", "write both from the same source"),
    "segment-listed-twice": (
        "error",
        f"an id is twice in {LISTED}",
        "give each segment an id of its own, in list and map: training skips these samples",
    ),
    "void-segment": (
        "error",
        f"{LISTED} has an id 0, that of pixels without a segment",
        "number segments from 1 on, in list and map: training skips these samples",
    ),
    "unknown-category": (
        "error",
        "a segment's category is no class",
        "name it in --id2label, or let a --class_map with `ignore: [ID]` drop its segments",
    ),
    "instance-of-several-classes": (
        "error",
        "an instance lies on several classes of the class map",
        "give all of its pixels one class, or each part an id of its own",
    ),
    "empty-segment": (
        "warning",
        "a listed segment is not in the map",
        f"take it off {LISTED}, or look for what was drawn over it: training leaves it out",
    ),
    "wrong-area-or-box": (
        "warning",
        f"area or bbox of {LISTED} are not those of the pixels",
        "check that list and map belong together; training goes by the pixels",
    ),
    "crowd-stuff": (
        "warning",
        "stuff is marked as a crowd",
        "set its iscrowd to 0: as a crowd it is neither trained nor evaluated",
    ),
    "split-crowd": (
        "warning",
        "a crowd is split into many regions",
        "merge them into one region of each class, or tell the objects apart and set iscrowd to 0",
    ),
    "crowd-as-thing": (
        "warning",
        "one thing lies in very many pieces",
        "mark it as a crowd (iscrowd 1), or give each object an id of its own",
    ),
    "stuff-in-segments": (
        "warning",
        "a class of stuff has several segments",
        "merge them, for stuff is one segment of an image; or name the class in --thing_classes",
    ),
    "scattered-instance": (
        "warning",
        "an instance has pieces far apart: is its id used twice?",
        "give each object an id of its own",
    ),
    "duplicate-segment": (
        "warning",
        "two segments cover the same pixels",
        "take one of each pair out",
    ),
    "tiny-segment": (
        "warning",
        "a segment is a speck",
        "take out what is a slip of the brush; --min_segment_area 4 leaves all of them out of training",
    ),
    "more-segments-than-queries": (
        "warning",
        "an image has more segments than the model can find",
        "raise --config_overrides num_queries, or give smaller crops (--crop_height, --crop_width)",
    ),
    "overlapping-segments": (
        "note",
        "segments overlap, and the smaller one gets the pixels, since panoptic segments do not",
        "nothing, if the smaller one lies in front; else cut the outlines, or train for --task instance",
    ),
    "no-segment": (
        "note",
        "the image has no segment",
        "leave it out if its objects are only not labelled: it teaches that there are none",
    ),
}


def segment_findings(of_samples: list[Finding], evidence: Evidence) -> list[Finding]:
    """The findings of single samples with what is known of all, and those that only all samples together tell."""
    if evidence.segments is None:
        return of_samples
    of_samples = [with_queries(finding, evidence) for finding in of_samples]
    if of_classes := classes_as_instances(evidence):  # whose pieces are many, and no fault
        odd = ("scattered-instance", "crowd-as-thing", "tiny-segment")
        return [of_classes, *(finding for finding in of_samples if finding.name not in odd)]
    return [*of_samples, *crowd_only(evidence)]


def with_queries(finding: Finding, evidence: Evidence) -> Finding:
    """The finding of more segments than queries with the number that would do; others as they are."""
    if finding.name != "more-segments-than-queries":
        return finding
    most = max(max(counts.segments_per_map, default=0) for counts in evidence.splits.values())
    fix = f"--config_overrides num_queries={most}, or smaller crops (--crop_height, --crop_width), in which fewer lie"
    return replace(finding, fix=fix, details={**finding.details, "most": most})


def classes_as_instances(evidence: Evidence) -> Finding | None:
    """Class ids where ids of instances are expected: few, the same in most maps, and in many pieces."""
    ids, whole, _ = evidence.pieces.tolist()
    stored = merged([counts.instance_ids for counts in evidence.splits.values()])
    seen = IdPieces(evidence.maps, stored, ids, whole)
    if not seen.seem_classes():
        return None
    message = seen.described()
    details = {"maps": evidence.maps, "ids": len(stored)}
    return Finding(
        "error", "classes-as-instances", tuple(evidence.splits), message, AS_CLASSES, details, evidence.examples()
    )


def crowd_only(evidence: Evidence) -> list[Finding]:
    """Classes of things that occur in crowd regions alone."""
    assert evidence.segments is not None
    things = sorted(evidence.segments.form.classes.things)
    only = [index for index in things if evidence.class_crowds[index] and not evidence.class_segments[index]]
    if not only:
        return []
    read = "" if evidence.complete else " in the samples read"
    message = f"{evidence.called(only)} occurs in crowd regions only{read}, which are not trained"
    fix = "tell some of its objects apart, or take the class out by --class_map"
    level = "warning" if evidence.complete else "note"
    return [Finding(level, "crowd-only", tuple(evidence.splits), message, fix, {"classes": only})]

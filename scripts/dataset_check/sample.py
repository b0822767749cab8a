"""What one row of a dataset shows: nothing here stops at a fault, every fault is noted by the name of its finding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from image_processing.label_maps import unique_ids
from image_processing.preprocessing import EXIF_ORIENTATION
from scripts.cli.errors import UserError
from scripts.data.bands import PLAIN, as_image, for_eyes
from scripts.data.bounds import Bounds
from scripts.data.id_pieces import pieces_of, thinned
from scripts.data.ignored import IGNORE_INDEX
from scripts.data.mask_colours import RGB, MaskColours, colour_text
from scripts.data.samples import RowFormat, image_content, pillow_image, reason, sample_name
from scripts.dataset_check.label_rule import IGNORED, OUTSIDE, LabelRule
from scripts.dataset_check.sample_facts import SampleFacts
from scripts.dataset_check.segment_faults import MAPS, read_segments
from scripts.dataset_check.segment_rule import SegmentRule
from scripts.dataset_check.similarity import perceptual_hash


SMALL = 320  # longer side of what heights, regions and the page's images are taken from
LISTED_COLOURS = 12  # of a map in colours


def inspect(
    row: dict[str, Any], form: RowFormat, rule: LabelRule, index: int, segments: SegmentRule | None = None
) -> SampleFacts:
    """Reads an undecoded row as the trainer does, and notes what it finds.

    Args:
        segments: of labels that hold segments.
    """
    facts = SampleFacts(sample_name(row, form.image_column, index))
    image_size = look_at_image(row[form.image_column], facts, form)
    if segments is not None and segments.form.encoding not in MAPS:
        look_at_segments(row, form, rule, segments, facts)
        return facts
    label = decoded(row[form.label_column], facts, "map", form.bounds)
    if label is None:
        return facts
    facts.map_mode = label.mode
    if label.format == "JPEG":
        facts.faults["lossy-maps"] = "the map is a JPEG"
    if image_size is not None and label.size != image_size:
        note_sizes(facts, image_size, label.size, form.bounds.checked_value(row[form.image_column], facts.name))
    if segments is not None:
        look_at_segments(row, form, rule, segments, facts)
        return facts
    if form.colours and form.colours.applies_to(label):
        ids = ids_of_colours(label, form.colours, facts)
    else:
        ids = read_ids(np.asarray(label), facts)
    if ids is None:
        facts.colour_map = shrunk(label.convert("RGB"), Image.Resampling.NEAREST)
        return facts
    look_at_ids(ids, facts, rule)
    if set(facts.class_pixels) == {IGNORED}:
        facts.faults["map-without-class"] = f"only {', '.join(map(str, facts.ids))}, ignored"
    return facts


def look_at_segments(
    row: dict[str, Any], form: RowFormat, rule: LabelRule, segments: SegmentRule, facts: SampleFacts
) -> None:
    """Notes the faults of a row's segments, and counts them and their classes."""
    found = read_segments(row, form, segments, facts)
    if found is None:
        return
    size = (found.size[1], found.size[0])
    if facts.image_size not in (None, size) and not facts.faults.keys() & {"swapped-size", "size-mismatch"}:
        note_sizes(facts, facts.image_size or size, size, None)
    look_at_ids(found.label_map(segments.form.background).numpy().astype(np.int64), facts, rule)
    facts.regions = len(found)
    assert facts.segments is not None
    if facts.labels is not None:
        facts.segments.numbers = thinned(found.layers.numpy(), SMALL).max(axis=0)


def look_at_image(value: Any, facts: SampleFacts, form: RowFormat) -> tuple[int, int] | None:
    """Notes what an undecoded image is like; returns its (width, height), None if it cannot be read."""
    if value is None:
        facts.faults["unreadable-image"] = "there is none"
        return None
    try:
        image, has_alpha = image_content(value, f"image of sample {facts.name}", form.bounds)
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds on a broken file
        facts.faults["unreadable-image"] = reason(error)
        return None
    size = image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])
    try:
        pixels = form.image_form.pixels(image, has_alpha)
    except (OSError, ValueError, SyntaxError) as error:
        facts.faults["unreadable-image"] = reason(error)
        return size
    is_rgb = isinstance(image, Image.Image) and form.image_form.num_bands == PLAIN.num_bands
    facts.image_size, facts.image_mode = size, image.mode if is_rgb else f"{len(pixels)} bands"
    drawn = for_eyes(as_image(torch.from_numpy(np.ascontiguousarray(pixels))))
    facts.image = shrunk(drawn, Image.Resampling.BOX)
    facts.hashed = perceptual_hash(drawn)
    return size


def decoded(value: Any, facts: SampleFacts, what: str, bounds: Bounds) -> Image.Image | None:
    """The image or map as Pillow reads it, None if it cannot."""
    if value is None:
        facts.faults[f"unreadable-{what}"] = "there is none"
        return None
    try:
        return pillow_image(value, f"{what} of sample {facts.name}", bounds)
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds on a broken file
        facts.faults[f"unreadable-{what}"] = reason(error)
    return None


def note_sizes(facts: SampleFacts, image: tuple[int, int], label: tuple[int, int], value: Any) -> None:
    """Notes a map of another size than its image; sizes are (width, height)."""
    text = f"image {image[0]}x{image[1]}, map {label[0]}x{label[1]}"
    if image != label[::-1]:
        facts.faults["size-mismatch"] = text
        return
    orientation = exif_orientation(value)
    turned = f", the image's EXIF orientation is {orientation}" if orientation not in (0, 1) else ""
    facts.faults["swapped-size"] = text + turned


def exif_orientation(value: Any) -> int:
    """What an undecoded image says of how it is to be turned; 1 if nothing."""
    try:
        with Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"]) as image:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError):
        return 1


def ids_of_colours(label: Image.Image, colours: MaskColours, facts: SampleFacts) -> np.ndarray | None:
    """`(H, W)` ids of a map in colours; None for one whose colours are not all known, which is noted."""
    try:
        return colours.label_map(label, facts.name).astype(np.int64)
    except UserError as error:
        facts.faults["rgb-maps"] = str(error).partition(": ")[0].removeprefix(f"label map of sample {facts.name} ")
        return None


def read_ids(label: np.ndarray, facts: SampleFacts) -> np.ndarray | None:
    """`(H, W)` stored ids of a map as decoded; None for one in colours or of other numbers, which is noted."""
    if label.ndim == 3:
        colours = label[..., :3].astype(np.int64)
        if (colours == colours[..., :1]).all() or label.shape[2] < 3:
            facts.faults["rgb-maps"] = f"{facts.map_mode} with equal channels"
            return label[..., 0].astype(np.int64)
        found = np.unique(colours @ RGB)
        listed = ", ".join(colour_text(code) for code in found[:LISTED_COLOURS])
        more = ", ..." if len(found) > LISTED_COLOURS else ""
        facts.faults["rgb-maps"] = f"{facts.map_mode} with {len(found)} colours, {listed}{more}"
        return None
    if label.ndim != 2 or label.dtype.kind not in "uib":
        facts.faults["maps-not-ids"] = f"{label.dtype} of shape {label.shape}"
        return None
    if label.size and label.min() < 0:
        facts.faults["maps-not-ids"] = f"the negative id {label.min()}"
        return None
    return label.astype(np.int64)


def look_at_ids(ids: np.ndarray, facts: SampleFacts, rule: LabelRule) -> None:
    """Counts, heights and regions of a map `(H, W)` of stored ids."""
    if not ids.size:
        facts.faults["maps-not-ids"] = "no pixel at all"
        return
    present, counts = counted(ids)
    facts.ids = dict(zip(present.tolist(), counts.tolist()))
    small = thinned(ids, SMALL)
    heights = np.repeat((np.arange(len(small)) + 0.5) / len(small), small.shape[1])
    values, places = np.unique(small, return_inverse=True)
    places = places.ravel()
    sizes, sums = np.bincount(places), np.bincount(places, heights)
    # A speck of solid ground: all of its 5x5 neighbours have its id.
    flat = places.reshape(small.shape)
    inside = ndimage.maximum_filter(flat, 5) == ndimage.minimum_filter(flat, 5)
    solid = np.bincount(flat[inside], minlength=len(values))
    for value, *numbers in zip(values.tolist(), sizes.tolist(), sums.tolist(), solid.tolist()):
        facts.small_ids[value] = (numbers[0], numbers[1], numbers[2])
    facts.labels = rule.classes(small).astype(np.int32)
    facts.regions = count_regions(facts.labels)
    if facts.segments is None:
        look_at_pieces(flat, values, facts)
    for index, pixels in zip(rule.classes(present).tolist(), counts.tolist()):
        facts.class_pixels[index] = facts.class_pixels.get(index, 0) + pixels
    if OUTSIDE in facts.class_pixels:
        outside = present[rule.classes(present) == OUTSIDE]
        facts.faults["ids-out-of-range"] = f"ids {', '.join(map(str, outside[:5].tolist()))}"


def look_at_pieces(places: np.ndarray, ids: np.ndarray, facts: SampleFacts) -> None:
    """Notes how many ids lie in one piece, and whether they are 1, 2, ..., as ids of instances often are.

    Args:
        places: `(h, w)`, of each pixel the place of its id in `ids`.
    """
    counted = [place for place, id_ in enumerate(ids.tolist()) if id_ not in (0, IGNORE_INDEX)]
    boxes = ndimage.find_objects(places + 1)
    whole = sum(len(pieces_of(places[boxes[place]] == place)[0]) <= 1 for place in counted)
    facts.id_pieces = len(counted), whole
    facts.in_a_row = bool(counted) and ids[counted].tolist() == list(range(1, len(counted) + 1))


def counted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a map in ascending order, and how many pixels each has."""
    if ids.max() < 65536:
        counts = np.bincount(ids.ravel())
        present = unique_ids(ids)
        return present, counts[present]
    return np.unique(ids, return_counts=True)


def count_regions(labels: np.ndarray) -> int:
    """Connected areas of one class with at least `SPECK` pixels."""
    boxes = ndimage.find_objects(np.maximum(labels + 1, 0))  # class 0 is 1; ignored and outside are left out
    found = [pieces_of(labels[box] == index)[0] for index, box in enumerate(boxes) if box is not None]
    return sum(map(len, found))


def shrunk(image: Image.Image, how: Image.Resampling) -> Image.Image:
    """`image` at a whole fraction of its size, at most `SMALL` pixels wide and high."""
    step = max(1, -(-max(image.size) // SMALL))
    if step == 1:
        return image
    return image.resize((max(1, image.width // step), max(1, image.height // step)), how)


def shown_ids(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Classes of `LabelRule` as a map to be drawn: ignored is 255, outside is the id after the last class."""
    return np.select([labels == IGNORED, labels == OUTSIDE], [IGNORE_INDEX, num_labels], labels)

"""Connected regions of a label map, and segments, as polygons: GeoJSON in pixels and on the map, COCO annotations; and
label maps and maps of ids as GeoTIFF. By rasterio, which is an extra.

Pixels are connected by their sides. A polygon runs along the pixels' edges, so that drawing all polygons gives the
label map or the segments' masks again.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from image_processing.run_lengths import coco_run_lengths
from scripts.cli.errors import UserError
from scripts.drawing.visualization import Palette, class_colour
from scripts.storage.outputs import MARK


Ring = list[tuple[float, float]]
Polygon = list[Ring]  # its outline and then its holes, each closed
PIXELS = "x and y of the pixels' edges, from the image's upper left corner to the right and down"
DEGREES = "longitude and latitude, WGS 84"


def require_rasterio(what: str) -> None:
    """Raises `UserError` where rasterio is not installed."""
    if importlib.util.find_spec("rasterio") is None:
        raise UserError(f"{what} needs rasterio, which is not installed: pip install rasterio")


@dataclass(frozen=True)
class Region:
    """A region of a label map, or a segment, which may have several parts: `pixels` pixels of class `label`.

    Args:
        about: what else is known of it.
    """

    label: int
    polygons: list[Polygon]
    pixels: int
    about: dict[str, Any] = field(default_factory=dict)


def regions_of(labels: np.ndarray) -> Iterator[Region]:
    """The regions of a label map `(H, W)`, in pixel coordinates."""
    from rasterio import features

    for geometry, value in features.shapes(stored(labels), connectivity=4):
        polygon = geometry["coordinates"]
        yield Region(int(value), [polygon], pixels_in(polygon))


def region_of_mask(mask: np.ndarray, top: int, left: int, label: int, about: dict[str, Any]) -> Region:
    """A segment, in pixel coordinates of the image.

    Args:
        mask: `(h, w)` bool, its pixels in a box of the image.
        top: first row of the box.
        left: first column of the box.
    """
    import rasterio
    from rasterio import features

    found = features.shapes(
        mask.astype(np.uint8), mask=mask, connectivity=4, transform=rasterio.Affine.translation(left, top)
    )
    return Region(label, [geometry["coordinates"] for geometry, _ in found], int(mask.sum()), about)


def pixels_in(polygon: Polygon) -> int:
    """How many pixels a polygon along their edges holds."""
    outline, *holes = (abs(signed_area(ring)) for ring in polygon)
    return round(outline - sum(holes))


def stored(labels: np.ndarray) -> np.ndarray:
    """A label map of a type that rasterio takes: uint8 where the ids fit, else uint16."""
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16, copy=False)


def signed_area(ring: Ring) -> float:
    """Area of a closed ring, positive if it runs counterclockwise where y is up."""
    x, y = np.asarray(ring, dtype=np.float64).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


# ---- the map --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Georeference:
    """Where an image of `size` (height, width) lies: its coordinate reference system, and the affine transform from
    columns and rows of pixels to it."""

    crs: Any
    transform: Any
    size: tuple[int, int]


def georeference(file: Path) -> Georeference | None:
    """That of an image file, None if it has none or cannot be read."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(file) as image:
                if image.crs is None or image.transform.is_identity:
                    return None
                return Georeference(image.crs, image.transform, image.shape)
        except RasterioIOError:
            return None


def on_the_map(region: Region, place: Georeference) -> Region:
    """A region in degrees; outlines run counterclockwise and holes clockwise, as GeoJSON wants it.

    Raises:
        UserError: the reference system has no way to longitude and latitude.
    """
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    polygons = []
    for polygon in region.polygons:
        rings = []
        for number, ring in enumerate(polygon):
            columns, rows = np.asarray(ring, dtype=np.float64).T
            x = place.transform.a * columns + place.transform.b * rows + place.transform.c
            y = place.transform.d * columns + place.transform.e * rows + place.transform.f
            try:
                degrees = list(zip(*transform(place.crs, "EPSG:4326", list(x), list(y)), strict=True))
            except RasterioError as error:
                raise UserError(f"its reference system has no longitude and latitude: {error}") from error
            rings.append(degrees if (signed_area(degrees) > 0) == (number == 0) else degrees[::-1])
        polygons.append(rings)
    return replace(region, polygons=polygons)


def write_label_geotiff(labels: np.ndarray, place: Georeference, palette: Palette | None, file: Path) -> None:
    """Writes a label map as a GeoTIFF with colours, where its image lies."""
    colours = {index: (*class_colour(index, palette), 255) for index in range(256)}
    write_geotiff(stored(labels), place, file, colours)


def write_geotiff(
    values: np.ndarray, place: Georeference, file: Path, colours: dict[int, tuple[int, int, int, int]] | None = None
) -> None:
    """Writes a map `(H, W)` of uint8 or uint16 as a GeoTIFF where its image lies; one of uint8 with these colours."""
    import rasterio

    height, width = values.shape
    form = {"driver": "GTiff", "dtype": values.dtype.name, "count": 1, "compress": "deflate"}
    with rasterio.open(
        file, "w", width=width, height=height, crs=place.crs, transform=place.transform, **form
    ) as image:
        image.write(values, 1)
        if colours and values.dtype == np.uint8:
            image.write_colormap(1, colours)
        image.update_tags(TIFFTAG_SOFTWARE=MARK)


# ---- files ----------------------------------------------------------------------------------------------------------


def write_geojson(regions: Iterable[Region], names: dict[int, str], file: Path, coordinates: str) -> None:
    """Writes a GeoJSON feature for each region.

    Args:
        coordinates: what the coordinates are, in words.
    """
    head = json.dumps({"type": "FeatureCollection", "generator": MARK, "description": f"coordinates: {coordinates}"})
    with file.open("w", encoding="utf-8") as stream:
        stream.write(f'{head[:-1]}, "features": [')
        for number, region in enumerate(regions):
            about = {"class_id": region.label, "class": names.get(region.label, str(region.label))}
            feature = {
                "type": "Feature",
                "properties": about | region.about | {"pixels": region.pixels},
                "geometry": geometry_of(region),
            }
            stream.write(("," if number else "") + "\n" + json.dumps(feature))
        stream.write("\n]}\n")


def geometry_of(region: Region) -> dict[str, Any]:
    """The polygon of a region as GeoJSON has it; of several parts a multipolygon."""
    if len(region.polygons) == 1:
        return {"type": "Polygon", "coordinates": region.polygons[0]}
    return {"type": "MultiPolygon", "coordinates": region.polygons}


def coco_annotations(regions: Iterator[Region], size: tuple[int, int]) -> list[dict[str, Any]]:
    """A COCO annotation for each region, all of one part, of an image of `size` (height, width), without ids. One with
    holes, which COCO's polygons cannot have, is a run-length encoding."""
    annotations = []
    for region in regions:
        (polygon,) = region.polygons
        outline = np.asarray(polygon[0])
        (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
        segmentation: Any = [outline[:-1].flatten().tolist()]
        if len(polygon) > 1:
            box = (int(left), int(top), int(right), int(bottom))
            segmentation = run_lengths(region, box, size)
        about = {"area": region.pixels, "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
        annotations.append({"category_id": region.label, "segmentation": segmentation, **about})
    return annotations


def run_lengths(region: Region, box: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run-length encoding of a region.

    Args:
        box: left, top, right and bottom of the region.
    """
    import rasterio
    from rasterio import features

    left, top, right, bottom = box
    inside = features.rasterize(
        [geometry_of(region)],
        out_shape=(bottom - top, right - left),
        transform=rasterio.Affine.translation(left, top),
        dtype="uint8",
    )
    return coco_run_lengths(inside, top, left, size)


def coco_text(images: list[tuple[dict[str, Any], list[dict[str, Any]]]], names: dict[int, str]) -> str:
    """COCO's file of images, each with its annotations; all get their ids here. Ids of categories are class ids."""
    content: dict[str, Any] = {"info": {"description": MARK}, "images": [], "annotations": []}
    for image, found in images:
        image_id = len(content["images"]) + 1
        content["images"].append({"id": image_id, **image})
        for annotation in found:
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": image_id, **annotation})
    content["categories"] = [{"id": index, "name": name} for index, name in sorted(names.items())]
    return json.dumps(content) + "\n"

"""The kinds of files that `predict.py --outputs` chooses among. Names only: `--help` must not wait for torch."""

from __future__ import annotations


ENDINGS = {
    "labels": ("_labels.png",),
    "overlay": ("_overlay.png",),
    "confidence": ("_confidence.png",),
    "probabilities": ("_probabilities.npy",),
    "polygons": ("_polygons.geojson", "_polygons_map.geojson"),
    "coco": (),  # one file of all images
    "geotiff": ("_labels.tif",),
}
WORDS = {
    "labels": "label maps",
    "overlay": "overlays",
    "confidence": "confidence",
    "probabilities": "probabilities",
    "polygons": "polygons",
    "coco": "COCO annotations",
    "geotiff": "GeoTIFFs",
}
COCO_FILE = "coco.json"
DEFAULT_KINDS = ["labels", "overlay"]
NEED_RASTERIO = ("polygons", "coco", "geotiff")

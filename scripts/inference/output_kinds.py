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
    "instances": (),  # one file of all images
    "segments": ("_segments.png",),  # and one file of all images
    "ids": ("_ids.png",),
}
# Those of instance and panoptic models.
SEGMENT_ENDINGS = ENDINGS | {"geotiff": ("_ids.tif",)}
# Kinds that put something of all images into one file.
COMMON_FILES = {"coco": "coco.json", "instances": "instances.json", "segments": "panoptic.json"}
WORDS = {
    "labels": "label maps",
    "overlay": "overlays",
    "confidence": "confidence",
    "probabilities": "probabilities",
    "polygons": "polygons",
    "coco": "COCO annotations",
    "geotiff": "GeoTIFFs",
    "instances": "COCO results",
    "segments": "panoptic segments",
    "ids": "maps of ids",
}
# By the task of the model, those written where none are named first.
DEFAULT_KINDS = {
    "semantic": ["labels", "overlay"],
    "instance": ["instances", "overlay"],
    "panoptic": ["segments", "overlay"],
}
KINDS = {
    "semantic": ["labels", "overlay", "confidence", "probabilities", "polygons", "coco", "geotiff"],
    "instance": ["instances", "overlay", "ids", "polygons", "geotiff"],
    "panoptic": ["segments", "overlay", "ids", "polygons", "geotiff"],
}
NEED_RASTERIO = ("polygons", "coco", "geotiff")
# Why a kind is not for models of some other task.
WHY_NOT = {
    "labels": "a map of one class for each pixel tells no object from the next",
    "confidence": "its scores are of whole segments, which the files of them list, and not of pixels",
    "probabilities": "its scores are of whole segments, which the files of them list, and not of pixels",
    "coco": "it is made of a map of one class for each pixel, which tells no object from the next",
    "instances": "only an instance model finds objects that are ranked by a score and may overlap",
    "segments": "only a panoptic model finds segments of which every pixel has at most one",
    "ids": "it finds a class for each pixel and no segments that could have ids",
}

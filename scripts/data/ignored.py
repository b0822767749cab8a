"""The id of pixels that belong to no class."""

IGNORE_INDEX = 255

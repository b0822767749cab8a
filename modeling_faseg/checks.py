"""Bridge to the configuration package; an export writes the real file in its place."""

from configuration.checks import require, require_classes, require_counts  # noqa: F401

"""Images and pages: colours of classes, overlays, sheets, charts, HTML."""

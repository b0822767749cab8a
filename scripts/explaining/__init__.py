"""What `scripts/explain.py` shows: paths of the focus, their images and charts, the page."""

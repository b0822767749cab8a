"""What `scripts/explain.py` shows: paths of the focus, their pictures and charts, the page."""

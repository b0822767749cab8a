"""What `scripts/check_dataset.py` looks at, and what it concludes."""

"""What `scripts/benchmark.py` is made of: contestants, workloads, measuring, reporting."""

"""Figures: mean IoU, boundary IoU, intervals, benchmarks' protocols, results files."""

"""What the commands share on the way to a figure: the metric, inference at one and many scales, results files."""

"""What `scripts/predict.py` uses to segment whole datasets: shards of label maps and the run that fills them."""

"""What `scripts/train.py` is made of: flags, the loop, optimisation, checkpoints, log, trackers."""

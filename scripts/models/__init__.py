"""Official checkpoints: names, files, download."""

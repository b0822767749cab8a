"""From flags to a model and back to a folder; backbone weights; official checkpoints, their names and files."""

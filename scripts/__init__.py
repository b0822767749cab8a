"""Commands of the project: train, eval, predict, convert_checkpoint, demo."""

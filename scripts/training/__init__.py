"""What the commands share on the way to a model: arguments, streams, augmentation, optimisation, checkpoints."""

"""Labelled images: where they come from, how they are streamed, decoded, augmented and batched."""

"""From an image to its label map, at one or several sizes or by sliding windows; whole datasets into shards."""

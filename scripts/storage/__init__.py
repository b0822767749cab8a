"""Files and folders that are written whole or not at all, their digests, and retries of the network."""

"""Files and folders that are written atomically, their digests, and retries of the network."""

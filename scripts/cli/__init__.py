"""What the commands share with the command line: flags, errors, processes."""

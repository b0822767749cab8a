"""From a checkpoint to a repository on the Hub: its files, its card, the check for leaks, the push."""

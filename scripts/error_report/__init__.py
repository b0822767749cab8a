"""What `scripts/eval.py --report` shows, a page about the errors of a model; and the demo's page."""

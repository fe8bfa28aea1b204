"""Numbers about a model, all of them on the runner's engine."""

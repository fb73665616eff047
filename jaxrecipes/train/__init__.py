"""Training: loss, optimizer, state, step and loop."""

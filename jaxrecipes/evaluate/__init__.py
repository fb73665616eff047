"""Measuring what a model knows: likelihood, divergence from the base, choices, forgetting."""

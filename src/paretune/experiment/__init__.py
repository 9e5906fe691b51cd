"""Experiments: from a recipe to things that run."""

"""Measuring a model: preference losses, accuracy and margin per objective, and its answers."""

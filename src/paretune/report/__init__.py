"""Figures of fronts and of training runs."""

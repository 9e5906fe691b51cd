"""Solvers of multi-objective problems, one file a method."""

"""Runs: what fills a run folder, and goes on with it."""

"""Runs: what fills a run folder, in as many sessions as it takes."""

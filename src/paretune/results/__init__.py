"""Results: what a run folder holds, as data. Nothing here imports torch."""

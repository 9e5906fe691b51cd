"""LLM judges: ratings and comparisons of a run's answers, cached, counted and summed up."""

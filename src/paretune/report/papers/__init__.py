"""The tables and figures of the two papers, made of finished runs."""

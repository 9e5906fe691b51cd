"""The methods to compare with: one file a method, each with `train`."""

"""Using a front: choosing a point, talking to it, and taking it elsewhere."""

"""The pure text rooms: segments with offsets, protected parts, and the views that a model reads."""

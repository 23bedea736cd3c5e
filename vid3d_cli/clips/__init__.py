"""From frames to clips: resize and crop, aligned streams, sliding windows, dense runs."""

"""From frames to clips: preprocessing, the streams side by side, sliding windows, dense stretches."""

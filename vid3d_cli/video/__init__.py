"""From a source to frames with their times. PyAV is known here and nowhere else."""

"""A plan over many videos: read their clips, load the networks, run them here or on a Ray cluster."""

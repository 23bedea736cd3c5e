"""How the pipeline is mapped over many videos: one file an engine."""

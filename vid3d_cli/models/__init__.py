"""What is known of networks: the manifest, the registry, their weights and checkpoints, and the backbones."""

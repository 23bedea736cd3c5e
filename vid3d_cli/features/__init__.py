"""Rows of features on disk: the stores, and tools that read, check, merge and compare them."""

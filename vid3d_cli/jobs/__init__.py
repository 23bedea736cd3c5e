"""Batch jobs: what is left of a list of videos, who works on which, and what becomes of the results."""

"""Labelled scans: prepared examples on disk, and how they are varied while training."""

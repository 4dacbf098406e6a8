"""Classifiers for use elsewhere, and the script that goes with them."""

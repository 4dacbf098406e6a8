"""The papers' tables as commands, and the checks a network must stand."""

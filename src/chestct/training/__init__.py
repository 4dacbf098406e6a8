"""Train a network on prepared examples."""

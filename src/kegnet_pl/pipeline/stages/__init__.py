"""The stages of a run: each computes one result and leaves it in the store."""

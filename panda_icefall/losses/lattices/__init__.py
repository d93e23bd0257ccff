"""Lattices: from the log-probs of arcs, or of sites, to the loss. One file for each kind."""

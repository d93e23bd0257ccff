"""Memory and seconds of a run, by step and phase."""

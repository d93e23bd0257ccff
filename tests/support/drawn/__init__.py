"""Examples drawn by hypothesis, and the properties that every one of them must have."""

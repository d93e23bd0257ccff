"""What a run shows its user: the console's tables, and the report of a bounded run."""

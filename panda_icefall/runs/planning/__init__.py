"""What a recipe's losses will need, before it is run: by component, and how long a batch may be."""

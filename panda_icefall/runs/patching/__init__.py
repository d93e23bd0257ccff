"""PANDA's lines in a recipe's own train.py: put in, taken out, looked for."""

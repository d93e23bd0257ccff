"""The largest ``--max-duration`` that fits, found by running a recipe's worst batches."""

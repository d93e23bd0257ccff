"""Whether dense and routed training are the same training, on a recipe's own batches."""

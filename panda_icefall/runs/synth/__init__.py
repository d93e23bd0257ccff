"""Synthetic data in the recipes' own layouts."""

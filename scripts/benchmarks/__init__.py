"""What the bench_*.py scripts share: problems, methods, measurements, tables."""

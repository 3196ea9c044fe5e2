"""Benchmarks of kegnet_pl."""

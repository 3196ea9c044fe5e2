"""Reports of runs: tables, pictures of samples, ``results.json``."""

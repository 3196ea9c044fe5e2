"""The command line: Hydra configuration, finished stages on disk, and the stages from teacher to report."""

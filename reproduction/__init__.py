"""Every number of the paper beside ours: ``make reproduce``."""

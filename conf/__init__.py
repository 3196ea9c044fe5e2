"""All defaults of kegnet_pl, a folder a configuration group; installed as ``kegnet_pl.conf``."""

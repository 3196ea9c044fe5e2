"""Entry point of ``python -m kegnet_pl``."""

from kegnet_pl.pipeline.cli import main

if __name__ == "__main__":
    main()

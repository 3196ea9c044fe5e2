"""``python -m kegnet_pl``."""

from kegnet_pl.cli import main

if __name__ == "__main__":
    main()

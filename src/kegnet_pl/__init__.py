"""A smaller network from a trained one, without its data: KegNet with PyTorch Lightning and Hydra."""

__version__ = "0.1.0"

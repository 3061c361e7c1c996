"""raymix: finds the mixture of supervised fine-tuning data, on Ray."""

__version__ = "0.1.0"

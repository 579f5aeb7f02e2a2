"""More out of models with less: one library and one command for the methods of 73 papers."""

__version__ = "0.1.0"

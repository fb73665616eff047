"""jaxrecipes: teach a pretrained language model something new without making it forget."""

__version__ = "0.1.0"

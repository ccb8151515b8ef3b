"""The model as data: the format and its checks, export, the built-in families, weights."""

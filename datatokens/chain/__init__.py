"""A connection to an EVM chain (simulate, sign, send, wait), and the embedded chain."""

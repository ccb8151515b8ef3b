"""The theatre: Flower runs over many hospitals. Holds no patient data; only settlement.py sends
with a wallet's key.
"""

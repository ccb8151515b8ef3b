"""What a buyer runs: the hub's client, the SDK, progress in a terminal. Imports nothing
of the hub itself.
"""

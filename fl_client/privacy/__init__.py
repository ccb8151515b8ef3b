"""Privacy: plan, accounting, ledger, clipping, noise, one DP round, evaluation,
self-check, audit.
"""

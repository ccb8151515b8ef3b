"""The bank: contracts, the chain, and every word that means money. Knows nothing of training."""

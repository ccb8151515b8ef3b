"""The node: configuration, policy, admission, rounds, attestation, Flower's side."""

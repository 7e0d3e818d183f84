"""A storm over a cluster: machines in namespaces of their own, struck at random, and an account of what comes of it."""

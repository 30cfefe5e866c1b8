"""From a partition to a bundle, and what can be checked about it."""

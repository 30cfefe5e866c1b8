"""From a partition to a bundle: stage files, both variants, and the checks that they answer as the model does."""

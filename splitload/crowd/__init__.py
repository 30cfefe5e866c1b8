"""A crowd of small devices that run the stages of one model as a pipeline."""

"""A crowd of small devices that run the stages of one bundle as a streaming pipeline, on dask.distributed."""

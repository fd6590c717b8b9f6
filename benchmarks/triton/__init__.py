"""Triton Inference Server with its sequence batcher: a server that Carousel is compared with."""

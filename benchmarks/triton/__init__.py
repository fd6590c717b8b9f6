"""Triton Inference Server with its sequence batcher: a peer that Carousel is measured beside."""

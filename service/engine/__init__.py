"""The hot path: a scheduler decides, a graph computes, the engine joins them."""

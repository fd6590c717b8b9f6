"""How Carousel is deployed; the packages in here are for who builds it, not for who runs it."""

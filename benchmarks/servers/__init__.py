"""The servers that Carousel is compared with. Each has few lines and runs in a separate process."""

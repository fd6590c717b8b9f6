"""What Carousel is measured against: servers of a few lines, each in a process of its own."""

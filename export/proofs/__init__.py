"""What must hold of graphs before a bundle of them is written."""

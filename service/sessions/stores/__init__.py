"""Where sessions outlive their process: records behind one protocol."""

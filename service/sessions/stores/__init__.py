"""Where sessions are kept, behind one protocol."""

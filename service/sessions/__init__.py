"""Sessions: their life, their requests and their stores."""

"""Wire to domain and back, and nothing else: the only room but `server` that knows grpc."""

"""From a checkpoint to a verified bundle. Needs torch; knows the models and, of the server, the manifest alone."""

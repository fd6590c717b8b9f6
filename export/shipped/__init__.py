"""The bundles that come with the project: their recipes' checkpoints to bundles, and their cards."""

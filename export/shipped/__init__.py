"""Makes the bundles that come with the project, from their recipes' checkpoints, with their cards."""

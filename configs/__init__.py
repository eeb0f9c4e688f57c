"""Settings as plain ml_collections: a folder a family, a file a data set."""

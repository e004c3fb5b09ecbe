"""A second embedded world, that tells art encoders and ways of injecting them apart."""

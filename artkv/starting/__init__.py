"""From a folder of pictures and tables to a config that a training can start with."""

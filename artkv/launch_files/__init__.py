"""The files of launch/, written out of an installed package for use without a clone."""

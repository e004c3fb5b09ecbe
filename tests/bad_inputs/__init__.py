"""Wrong inputs, one at a time: a table that is tested, and that a page of the docs is made of."""

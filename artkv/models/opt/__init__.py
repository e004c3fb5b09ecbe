"""What artkv does to OPT: attention, packed sequences, columns of answers, loss and decoding."""

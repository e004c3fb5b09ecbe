"""One HTML file about a run, for somebody who has neither the run's folder nor artkv."""

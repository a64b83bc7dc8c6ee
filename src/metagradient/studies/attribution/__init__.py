"""The parts of the experiment `attribution`."""

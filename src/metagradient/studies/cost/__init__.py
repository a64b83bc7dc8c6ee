"""The parts of the experiment `cost`."""

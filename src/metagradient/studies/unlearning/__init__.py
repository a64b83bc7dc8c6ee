"""The parts of the experiment `unlearning`."""

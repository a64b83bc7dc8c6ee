"""A step whose batch is shared by several processes."""

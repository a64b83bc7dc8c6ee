"""Pages that a run leaves: single files that load nothing and obey nothing that data say."""

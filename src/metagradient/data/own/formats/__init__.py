"""The formats that rows come in: files, folders of files, Arrow data sets on disk or of the hub."""

"""The commands of `perception`. They are the one place that knows both `perception` and `deploy`."""

"""Where pixels and records lie: Zarr on a disk or behind a URL, manifests, ledgers and locks."""

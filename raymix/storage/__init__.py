"""Where a study keeps its files: on a disk, or in an object store reached through fsspec."""

"""Where blocks are computed: Dask workers, the jobs they do, and how a killed run resumes."""

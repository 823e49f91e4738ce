"""Runs a plan on a cluster: cluster.toml, scripts of jobs, their submission to SLURM, and what a job does."""

"""From a suite's config to the paper's tables, in the order in which a suite uses it:

graph       the config of a suite as runs, and which run needs which
store       the runs in a work dir: identity, done or not, notes; how one run starts and ends
local       the plan on this machine
slurm       the plan on a cluster: cluster.toml, scripts of jobs, their submission, what a job does
published   published numbers with their sources
match       which published number a result may stand beside, and why not
tables      tables and figures: ours | published | difference, in each format
report      report.html: tables, charts, curves, pictures, and how each number was made
"""

"""From a suite's config to the paper's tables. In the order in which a suite passes through them:

schema    what a suite's config says                     records   results as the tables take them, and node.json
grid      an ablation: rows of overrides                 names     what the paper calls what was run
toolbox   the tools that a suite runs                    published what others published, with its source
plan      the config as a graph of runs                  places    a result's row and column in each table
work      the graph in a folder: what is done            layouts   the tables and figures that there are
steps     how one run starts and ends                    tables    published | yours | difference
job       one run in a process of its own                formats   tables as text, markdown, csv, LaTeX, HTML
run       the plan on this machine                       figures   a chart per task, figures 5, 7 and 9
slurm     the plan on a cluster                          pictures  curves and drawings of a report
view      what a user sees meanwhile                     report    report.html
preload   what runs import, once for all of them         summary   one table of everything, and what it must show
evidence  digests of what a finished run left            origins   how each number of a report came to be
"""

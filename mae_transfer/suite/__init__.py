"""From a suite's config to the paper's tables. The modules, in the order in which a suite uses them:

schema    the config of a suite                          names       the paper's names for what was run
grid      an ablation: rows of overrides                 published/  published numbers with their sources
toolbox   the tools that a suite runs                    match       which published number is comparable
plan      the config as a graph of runs                  layouts     the tables and figures
work      the runs in a work dir: done or not            places      the row and column of a result in each table
steps     how one run starts and ends                    cells       numbers of a table: mean, spread, notes
job       one run in its own process                     comparison  tables: ours | published | difference
run       the plan on this machine                       costs       table 2: what pretraining costs
slurm     the plan on a cluster                          sheets      the text of a table in each format
view      console output of a suite                      formats     terminal, markdown, csv, LaTeX, HTML
preload   imports, once for all runs                     figures     a chart per task, figures 5, 7 and 9
evidence  digests of what a finished run wrote           pictures    curves and drawings of a report
records   results with their run, and node.json          origins     how each number of a report was made
report    report.html                                    summary     one table of everything, and its expectations
"""

"""report.html: one page that holds a suite."""

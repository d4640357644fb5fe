"""Running suites: cells of work, reports, plots, pages."""

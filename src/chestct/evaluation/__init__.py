"""Judge a classifier on labelled scans: figures with intervals, comparisons, calibration, plots.

Nothing is imported here: scikit-learn, statsmodels and matplotlib are loaded by the functions that
use them, so that the command line answers at once.
"""

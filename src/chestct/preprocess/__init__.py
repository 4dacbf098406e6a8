"""From a scan to a network's input: recipes, lungs, resampling, salient slices.

Import from the modules (`preprocess.recipes`, `preprocess.prepare`): the recipes are plain tables
that have to be there at once, and preparing needs numerical libraries that take a while to load.
"""

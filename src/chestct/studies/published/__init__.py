"""What the two papers and their public repositories say, packaged as plain facts.

`roi_aware_paper.json` and `maseres_paper.json` hold tables and counts, `roi_aware_predictions.csv`
the 18 published prediction vectors of the RoI-aware 3D ResNet paper, and
`roi_aware_workbook_labels.csv` the labels that its workbooks give differently from its label files.
Each JSON names its source. `facts` reads them.
"""

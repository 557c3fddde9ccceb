"""Which method should I use? Asked of real data, by `keras_mgda.compare`.

`problems` are data sets with a network each; `run` compares the methods on one
of them, and diagnoses its fresh model; `ranks` tells from all comparisons
whether the methods differ, and `report` whether the diagnosis was right.
`scales` asks what they make of a loss that is in another unit.
"""

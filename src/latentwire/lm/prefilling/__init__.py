"""Reads short prefixes at sizes that recur, on a GPU as captured graphs.

`prefill_sizes` says which size a prefix is padded to, `bucket` reads at one size, `graphs` keeps the sizes of one
model.
"""

from latentwire.lm.prefilling.graphs import PrefillGraphs as PrefillGraphs

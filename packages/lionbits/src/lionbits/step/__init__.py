"""One update of an optimizer's parameters.

``prepare`` sorts parameters into launch groups (``launch``) and lets backends prepare. ``cache`` keeps these for the
next step, as long as the ``snapshot`` of their inputs is unchanged. ``run`` does the update: ``factors`` computes the
factors of clipping, ``scalars`` holds the numbers of each tensor on its device. ``single`` and ``backward`` update one
parameter alone. ``momenta`` reads and writes momentum as float32.
"""

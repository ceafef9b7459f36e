"""One update of an optimizer's parameters.

``prepare`` sorts parameters into launch groups (``launch``) and lets backends prepare. ``cache`` keeps that for the
next step, as long as the ``snapshot`` of what it depends on is unchanged. ``run`` does the update: ``factors`` are what
clipping multiplies by, ``scalars`` the numbers of each tensor on its device. ``single`` and ``backward`` update one
parameter alone. ``momenta`` reads and writes momentum as float32.
"""

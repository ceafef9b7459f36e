"""The state of one parameter.

``entries`` has the names that lionbits owns, and checks their tensors. ``counts`` has the numbers of updates.
``formats`` remembers the format of codes. ``residual`` joins bfloat16 parameters to their residuals.
"""

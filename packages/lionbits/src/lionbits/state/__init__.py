"""The state of one parameter.

``entries`` has the names that lionbits owns, and checks what they hold. ``counts`` has the numbers of updates.
``formats`` remembers the format of codes. ``residual`` joins bfloat16 parameters to what compensation keeps of them.
"""

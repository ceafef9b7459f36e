"""State dicts, files, and copies of optimizers.

``state_dicts`` returns and loads state dicts. ``form`` and ``validation`` check one before anything is changed.
``matching`` finds the saved parameter of each of the optimizer's. ``keeping`` chooses whose settings count. ``convert``
changes formats. ``recognise`` detects whose state dict it is. ``saving`` and ``safetensors_files`` write files.
``copies`` is for deepcopy and pickle. ``weights`` gives compensated parameters as float32.
"""

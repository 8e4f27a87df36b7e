"""Makes softkin detectors: data, the soft nearest neighbor loss, training, export, bank and calibration.

    config -> data -> models, losses -> train -> export -> build -> evaluate

Needs the `training` extra. A finished bundle needs nothing from here: `softkin` alone serves it.
"""

"""Evaluation: the scores of a model under the protocols of the papers.

In: a trained model, folders of test images. Out: scores.json, protocols.json, scores.parquet and pictures in
runs/<recipe>/. Begin with `evaluate.evaluate_recipe`; `benchmark` and `items` say on what, `protocols` and `metrics` how it is
scored, `published` what the papers have, and `listing` whether the images changed.
"""

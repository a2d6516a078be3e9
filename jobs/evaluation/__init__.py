"""Evaluation: the scores of a model under the protocols of the papers.

In: a trained model, folders of test images. Out: scores.json, scores.parquet and pictures in runs/<recipe>/. Begin with
`evaluate.evaluate_recipe`; `benchmark` says on what, `protocols` and `metrics` how it is scored,
`published` what the papers have.
"""

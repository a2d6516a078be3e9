"""Evaluation: the scores of a model under the protocols of the papers.

In: a trained model, folders of test images. Out: scores.json, scores.parquet and pictures in runs/<recipe>/. Begin with
`evaluate.evaluate_recipe`; what a score is, and what was published, is in `protocols`.
"""

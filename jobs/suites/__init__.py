"""Suites: each table and figure of the four papers under one name, e.g. memnet-table5.

In: <paper>/table<N>.yaml and <paper>/figure<N>.yaml, what the papers print; test images; trained models. Out: a table with our
row beside the printed ones, or a figure with its data, in suites/<name>/. Begin with `commands`; `sets` are the images,
`tables` measures, `variants` trains, `cost` counts, `figures` draws, and `state` says what can run here.
"""

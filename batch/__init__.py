"""Registration of many pairs: workers, a journal that survives a stop, the table of results.

:func:`batch.run.run_batch` composes the parts: ``folder`` (of the results), ``journal``, ``engine``
(what all engines have in common: ``in_process``, and ``worker_pool`` over ``processes`` or
``ray_cluster``), ``results``. docs/scale.md describes them.
"""

"""Registration of one image pair: from two images to a transform and the confidence in it.

:func:`registration.pipeline.register_pair` composes the stages, each in a file of its own:
``working_frame``, ``matcher`` (contract; ``keypoint_matcher`` and ``loftr_matcher`` implement it),
``proposals``, ``guided_fit``, ``refinement``, ``confidence`` (its coefficients:
``confidence_model``), ``transform_choice``.
:class:`registration.registrar.Registrar` is the interface for Python.
"""
